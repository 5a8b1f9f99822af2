// This script runs in the head, so that the paper has its colour before the first paint. Mantine reads the same key.
(function () {
  const KEY = "mantine-color-scheme-value";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const current = () => {
    const own = remembered();
    return own === "light" || own === "dark" ? own : dark.matches ? "dark" : "light";
  };
  const apply = (scheme) => document.documentElement.setAttribute("data-mantine-color-scheme", scheme);
  apply(current());
  dark.addEventListener("change", () => {
    if (remembered() === "light" || remembered() === "dark") return;
    apply(current());
    window.dash_clientside?.set_props?.("theme", { data: current() });
  });
  window.rootDashTheme = {
    current,
    toggle() {
      const next = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem(KEY, next); } catch { /* a private window may store nothing */ }
      apply(next);
      return next;
    },
  };
})();
