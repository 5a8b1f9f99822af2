// The answers that need no server: theme, address, shown step, and the marker at the shown step.
(function () {
  const address = window.rootDashAddress;
  const skip = () => window.dash_clientside.no_update;
  // dcc.Location hears of a new address through a popstate event.
  const go = (to, record = "pushState") => {
    history[record](null, "", to);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
  // What a page hands on to the page that it leads to: its query, but not the layer that the overview selects.
  function query() {
    const { [address.selected]: _, ...rest } = Object.fromEntries(new URLSearchParams(window.location.search));
    return rest;
  }

  // The address of the layer so many places further in the picker; null on other pages.
  function beside(places) {
    const picker = window.dash_component_api?.getLayout("layer-picker");
    const layers = ((picker && picker.props.data) || []).map((layer) => layer.value);
    const { run, layer } = address.read("layer", window.location.pathname) ?? {};
    const at = layers.indexOf(layer);
    if (at < 0) return null;
    return address.make("layer", { run, layer: layers[(at + places + layers.length) % layers.length] }, query());
  }

  // J and K.
  function walk(places) {
    const to = beside(places);
    if (to) go(to);
  }

  // The page of a layer that a link names, at the link's step; null if the link leads elsewhere.
  function open(href, step) {
    const url = new URL(href, window.location), numbers = address.read("layer", url.pathname);
    const { [address.step]: _, ...rest } = query();
    const at = url.searchParams.get(address.step) ?? step ?? null;
    return numbers && go(address.make("layer", numbers, at === null ? rest : { ...rest, [address.step]: at }));
  }
  window.rootDashView = { open, walk };

  // Links whose address follows the query, which changes with the shown step.
  const targets = {
    previous: () => beside(-1),
    next: () => beside(1),
    back() {
      const numbers = address.read("layer", window.location.pathname);
      return numbers && address.make("overview", numbers, { ...query(), [address.selected]: numbers.layer });
    },
  };
  const linked = (event) => event.target.closest?.("a[data-go]");
  for (const name of ["pointerover", "focusin"])
    document.addEventListener(name, (event) => {
      const link = linked(event);
      if (link) link.href = targets[link.dataset.go]() ?? "/";
    });
  document.addEventListener("click", (event) => {
    const link = linked(event);
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(targets[link.dataset.go]() ?? "/");
  });

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    rootdash: {
      theme(clicks) {
        const scheme = clicks ? window.rootDashTheme.toggle() : window.rootDashTheme.current();
        return [scheme, scheme];
      },
      // A new view: go to the address that the view points to, or follow its run.
      arrive(view) {
        if (view && view.to) return go(view.to, "replaceState");
        document.title = view && view.name ? `${view.name} · root-dash` : "root-dash";
        window.rootDashStream.follow(view);
      },
      ended(run) { window.rootDashStream.end(run); },
      pickRun(run, view) {
        if (!run || (view && String(view.run) === run)) return;
        // From a layer's page to the layer of the same name in the other run.
        const { layer } = address.read("layer", window.location.pathname) ?? {};
        go(address.make("overview", { run }, layer ? { ...query(), like: layer } : query()));
      },
      pickLayer(layer, view) {
        if (!layer || !view) return skip();
        go(address.make("layer", { run: view.run, layer }, query()));
        return null;
      },
      // The URL keeps the value of a control under the control's id.
      keep(value) {
        const text = Array.isArray(value) ? value.map(encodeURIComponent).join(",") : value;
        address.keep({ [window.dash_clientside.callback_context.triggered_id]: text || null });
      },
      // The run lost all its frames, or was removed: the address is routed anew.
      gone() { window.dispatchEvent(new PopStateEvent("popstate")); },
    },
  });
})();
