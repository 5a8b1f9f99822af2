// Addresses by the server's grammar (`address.py`): made from a view, and read back.
(function () {
  let grammar = null;
  const known = () => (grammar ??= JSON.parse(document.getElementById("page").dataset.grammar));

  window.rootDashAddress = {
    get step() { return known().step; },
    get selected() { return known().selected; },
    // The address of a page: make("layer", { run: 1, layer: 2 }, { step: 30 }).
    make(page, numbers, query = {}) {
      const path = known().paths[page].replace(/{(\w+)}/g, (_, name) => numbers[name]);
      const search = new URLSearchParams(query).toString();
      return search ? `${path}?${search}` : path;
    },
    // The numbers in a path of a page, as strings; null for any other path.
    read(page, path) {
      const { paths, number } = known();
      const named = paths[page].replace(/{(\w+)}/g, (_, name) => `(?<${name}>${number})`);
      return path.match(new RegExp(`^${named}/?$`))?.groups ?? null;
    },
    // Set or remove (null) names in the query of the current address, without a new entry in the history.
    keep(query) {
      const url = new URL(window.location);
      for (const [name, value] of Object.entries(query))
        value === null ? url.searchParams.delete(name) : url.searchParams.set(name, value);
      if (url.href !== window.location.href) history.replaceState(history.state, "", url);
    },
  };
})();
