// The answers that need no server: theme, address, shown step, and the marker at the shown step.
(function () {
  const address = window.rootDashAddress;
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const skip = () => window.dash_clientside.no_update;
  // dcc.Location hears of a new address through a popstate event.
  const go = (to, record = "pushState") => {
    history[record](null, "", to);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
  const count = (step) => step.toLocaleString("en-US");

  // J and K: go to the layer so many places further in the picker.
  function walk(places) {
    const picker = window.dash_component_api?.getLayout("layer-picker");
    const layers = ((picker && picker.props.data) || []).map((layer) => layer.value);
    const { run, layer } = address.read("layer", window.location.pathname) ?? {};
    const at = layers.indexOf(layer);
    if (at >= 0) go(address.make("layer", { run, layer: layers[(at + places + layers.length) % layers.length] }));
  }
  window.rootDashView = { go, walk };

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
      pickRun(run, view) { if (run && (!view || String(view.run) !== run)) go(address.make("overview", { run })); },
      pickLayer(layer, view) {
        if (!layer || !view) return skip();
        go(address.make("layer", { run: view.run, layer }));
        return null;
      },
      // The URL keeps the value of a control under the control's id.
      keep(value) {
        const text = Array.isArray(value) ? value.map(encodeURIComponent).join(",") : value;
        address.keep({ [window.dash_clientside.callback_context.triggered_id]: text || null });
      },
      // A new recording: the slider grows, and moves along if the page follows the newest step.
      advance(cursor, follow) {
        if (!cursor || document.querySelector("#step-slider:active")) return [skip(), skip()];
        return [cursor.step, follow ? cursor.step : skip()];
      },
      // If the user moves the slider away from its end, the page stops following the newest step.
      letGo(value, most, follow) { return follow && value < most ? false : skip(); },
      catchUp(follow, most, value) { return follow && value !== most ? most : skip(); },
      nudge(earlier, later, value, least, most, step) {
        const back = window.dash_clientside.callback_context.triggered_id === "earlier";
        return Math.min(most, Math.max(least, value + (back ? -step : step)));
      },
      shown(cursor, value, follow, before) {
        const next = follow ? { step: null, cursor: cursor ? cursor.id : 0 } : { step: value };
        return same(next, before) ? skip() : next;
      },
      step(value, follow) {
        address.keep({ [address.step]: follow ? null : value });
        window.rootDashPlots.mark(follow ? null : value);
        return value === null || value === undefined ? "" : `step ${count(value)}`;
      },
    },
  });
})();
