// Keeps a zoom over live updates. Plotly's own `uirevision` would, but dcc.Graph (Dash 4.4) writes every zoom back into
// the figure and draws it again, after which Plotly takes the range for the figure's own and lets the next figure
// replace it. So the ranges that the user chose are put into each further figure of the same `uirevision`.
(function () {
  const zooms = new WeakMap();

  function note(box, edit) {
    const revision = box.layout.uirevision;
    const known = zooms.get(box);
    const axes = known && known.revision === revision ? known.axes : {};
    for (const key of Object.keys(edit || {})) {
      const [, axis, what] = key.match(/^([xy]axis\d*)\.(range|autorange)/) || [];
      if (what === "autorange") delete axes[axis];
      else if (what === "range") axes[axis] = [...box.layout[axis].range];
    }
    zooms.set(box, { revision, axes });
  }

  function wrap(plotly) {
    const react = plotly.react;
    plotly.react = function (box, figure, ...rest) {
      const known = zooms.get(box);
      if (known && figure.layout && figure.layout.uirevision === known.revision)
        for (const [axis, range] of Object.entries(known.axes))
          figure.layout[axis] = { ...figure.layout[axis], range, autorange: false };
      return react.call(this, box, figure, ...rest).then((drawn) => {
        if (!zooms.has(box)) {
          zooms.set(box, { axes: {} });
          box.on("plotly_relayout", (edit) => note(box, edit));
        }
        return drawn;
      });
    };
  }

  const waiting = setInterval(() => {
    if (!window.Plotly) return;
    clearInterval(waiting);
    wrap(window.Plotly);
  }, 50);
})();
