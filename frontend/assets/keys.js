// Keys: J and K walk the layers, the arrows the steps, space follows the newest step, / searches a layer, Enter opens the
// layer that is selected on the overview, ? shows the keys.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
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
  else if (key === "?") document.getElementById("shortcuts")?.showModal();
  else if (key === "/") {
    const search = document.getElementById("layer-picker");
    if (search) { event.preventDefault(); search.focus(); search.click(); }
  }
});

// After a choice the focus leaves the picker, so that the keys work again.
document.addEventListener("click", (event) => {
  if (event.target.closest("[role='option']")) setTimeout(leave);
  const { opens, closes } = event.target.closest("[data-opens], [data-closes]")?.dataset ?? {};
  if (opens) document.getElementById(opens)?.showModal();
  if (closes) document.getElementById(closes)?.close();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.closest("[aria-haspopup='listbox']")?.getAttribute("aria-expanded") === "true")
    setTimeout(leave);
}, true);

function leave() {
  if (document.activeElement?.matches("[aria-haspopup='listbox'][aria-expanded='false'], [aria-haspopup='listbox']:not([aria-expanded])"))
    document.activeElement.blur();
}
