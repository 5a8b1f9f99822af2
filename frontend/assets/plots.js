// The state of figures that only the browser knows: the user's zoom, and the shown step.
//
// A zoom survives live updates. Plotly's `uirevision` does not achieve this alone: dcc.Graph (Dash 4.4) writes every zoom
// into the figure and draws the figure again. Plotly then takes the range for the figure's own, and the next figure
// replaces the range. So this script wraps `Plotly.react`, through which dcc.Graph draws, and puts the ranges that the
// user chose into each further figure of the same `uirevision`. tests/browser/test_private_apis.py checks the wrapping.
(function () {
  const zooms = new WeakMap();
  let shown = null, chosen = null;

  // The dotted line at the shown step, and the frame of the selected layer's row on the map. The server sends figures in
  // which both are hidden.
  function placed(layout) {
    const row = (layout.meta?.ids ?? []).indexOf(chosen ?? undefined);
    return layout.shapes.map((shape) => {
      if (shape.name === "step") return { ...shape, x0: shown ?? 0, x1: shown ?? 0, visible: shown !== null };
      return shape.name === "row" ? { ...shape, y0: row - 0.5, y1: row + 0.5, visible: row >= 0 } : shape;
    });
  }

  // Under a held key the marks move when the key rests: each move draws every figure.
  let moving = null;
  function mark(step, layer = null) {
    if (step === shown && layer === chosen) return;
    [shown, chosen] = [step, layer];
    clearTimeout(moving);
    moving = setTimeout(move, 80);
  }

  function move() {
    for (const box of document.querySelectorAll(".js-plotly-plot"))
      if (box.layout?.shapes?.some((shape) => shape.name === "step"))
        window.Plotly.relayout(box, { shapes: placed(box.layout) });
  }

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

  // The map says how high it may be, so that its rows are neither too thin nor too thick; style.css does the rest.
  function sized(meta) {
    if (!meta || !meta.most) return;
    for (const name of ["least", "most"]) document.getElementById("page").style.setProperty(`--${name}`, `${meta[name]}px`);
  }

  // Under a finger a drag scrolls the page, and does not zoom.
  const finger = window.matchMedia("(pointer: coarse)");

  function wrap(plotly) {
    const react = plotly.react;
    plotly.react = function (box, figure, ...rest) {
      const known = zooms.get(box);
      if (known && figure.layout && figure.layout.uirevision === known.revision)
        for (const [axis, range] of Object.entries(known.axes))
          figure.layout[axis] = { ...figure.layout[axis], range, autorange: false };
      sized(figure.layout && figure.layout.meta);
      if (figure.layout && finger.matches) figure.layout.dragmode = false;
      if (figure.layout && figure.layout.shapes) figure.layout.shapes = placed(figure.layout);
      return react.call(this, box, figure, ...rest).then((drawn) => {
        if (!zooms.has(box)) {
          zooms.set(box, { axes: {} });
          box.on("plotly_relayout", (edit) => note(box, edit));
        }
        return drawn;
      });
    };
  }

  window.rootDashPlots = { mark };

  const waiting = setInterval(() => {
    if (!window.Plotly) return;
    clearInterval(waiting);
    wrap(window.Plotly);
  }, 50);
})();
