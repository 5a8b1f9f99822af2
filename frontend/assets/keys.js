// Keys: J and K walk the layers, the arrows the steps, space follows the newest step, / searches a layer, and Enter opens
// the layer that is selected on the overview.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const within = event.target.closest("input, textarea, select, [role='slider'], [role='option']");
  if (within && !(within.type === "checkbox")) return;
  const press = (id) => {
    const target = document.getElementById(id);
    if (target) { event.preventDefault(); target.click(); }
  };
  const key = event.key.toLowerCase();
  if (key === "j" || key === "k") window.rootDashView.walk(key === "j" ? 1 : -1);
  else if (key === "arrowleft") press("earlier");
  else if (key === "arrowright") press("later");
  else if (key === " " && !event.target.closest("button, a, input")) press("follow");
  else if (key === "enter" && !event.target.closest("button, a, summary")) press("drawer-name");
  else if (key === "/") {
    const search = document.getElementById("layer-picker");
    if (search) { event.preventDefault(); search.focus(); search.click(); }
  }
});
