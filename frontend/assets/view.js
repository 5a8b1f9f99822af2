// What needs no server: the theme, the address, which step is shown, the marker at that step.
(function () {
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const skip = () => window.dash_clientside.no_update;
  // dcc.Location hears of a change through popstate.
  const go = (to, record = "pushState") => {
    history[record](null, "", to);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
  const count = (step) => step.toLocaleString("en-US");

  function address(query) {
    const url = new URL(window.location);
    for (const [name, value] of Object.entries(query))
      value === null ? url.searchParams.delete(name) : url.searchParams.set(name, value);
    if (url.href !== window.location.href) history.replaceState(history.state, "", url);
  }

  // J and K: the layer that stands so many places further in the picker.
  function walk(places) {
    const picker = window.dash_component_api?.getLayout("layer-picker");
    const layers = ((picker && picker.props.data) || []).map((layer) => layer.value);
    const [, run, layer] = window.location.pathname.match(/^\/r\/(\d+)\/l\/(\d+)/) || [];
    const at = layers.indexOf(layer);
    if (at >= 0) go(`/r/${run}/l/${layers[(at + places + layers.length) % layers.length]}`);
  }
  window.rootDashView = { walk };

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    rootdash: {
      theme(clicks) {
        const scheme = clicks ? window.rootDashTheme.toggle() : window.rootDashTheme.current();
        return [scheme, scheme];
      },
      // Another view: go where it points to, else follow its run.
      arrive(view) {
        if (view && view.to) return go(view.to, "replaceState");
        document.title = view && view.name ? `${view.name} · root-dash` : "root-dash";
        window.rootDashStream.follow(view);
      },
      ended(run) { window.rootDashStream.end(run); },
      pickRun(run, view) { if (run && (!view || String(view.run) !== run)) go(`/r/${run}`); },
      pickLayer(layer, view) {
        if (!layer || !view) return skip();
        go(`/r/${view.run}/l/${layer}`);
        return null;
      },
      // A click on a cell of the map: the row's layer, at the first step of the column.
      openCell(click, figure, view) {
        const cell = click && click.points && click.points.find((point) => point.z !== undefined);
        const { layers, starts } = (figure && figure.layout && figure.layout.meta) || {};
        if (!cell || !layers || !(cell.y in layers)) return;
        const step = starts.filter((start) => start <= cell.x).pop() ?? starts[0];
        go(`/r/${view.run}/l/${layers[cell.y]}?step=${step}`);
      },
      statistic(name) {
        address({ stat: name });
      },
      // A new recording: the slider grows, and moves along while it follows.
      advance(cursor, follow) {
        if (!cursor || document.querySelector("#step-slider:active")) return [skip(), skip()];
        return [cursor.step, follow ? cursor.step : skip()];
      },
      // A hand on the slider lets go of the newest step.
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
        address({ step: follow ? null : value });
        window.rootDashPlots.mark(follow ? null : value);
        return value === null || value === undefined ? "" : `step ${count(value)}`;
      },
    },
  });
})();
