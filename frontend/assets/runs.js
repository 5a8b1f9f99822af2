// The options of the run picker: name, state, worst verdict; step, date and last loss.
(function () {
  const date = (time) => new Date(time * 1000).toLocaleString("en-GB", {
    day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
  });

  window.dashMantineFunctions = Object.assign({}, window.dashMantineFunctions, {
    runOption({ option, checked }) {
      const part = (className, ...children) => window.React.createElement("span", { className }, ...children);
      return part(`run-option ${checked ? "checked" : ""}`,
        part("run-name", part(`dot ${option.worst || "none"}`), part("run-title", option.title), part(`run-state ${option.state}`, option.state)),
        part("run-facts", [`step ${option.step}`, option.loss && `loss ${option.loss}`, date(option.started), option.found]
          .filter(Boolean).join(" · ")));
    },
  });
})();
