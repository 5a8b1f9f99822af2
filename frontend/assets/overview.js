// The overview without the server: the selected layer, folded blocks, the chips, and the state in the tab's title and icon.
(function () {
  const address = window.rootDashAddress;
  const set = (id, props) => window.dash_clientside.set_props(id, props);
  const held = (id) => window.dash_component_api?.getLayout(id)?.props ?? {};
  const INKS = { "": "--second", healthy: "--good", warning: "--warn", critical: "--sick" };

  // Show the layers of a block, or hide them again.
  function fold(block) {
    const opened = (held("opened").value || "").split(",").filter(Boolean).map(decodeURIComponent);
    const next = opened.includes(block) ? opened.filter((name) => name !== block) : [...opened, block];
    set("opened", { value: next.map(encodeURIComponent).join(",") });
  }

  function icon(ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width: 32, height: 32 });
    const drawn = canvas.getContext("2d");
    drawn.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(ink).trim();
    drawn.arc(16, 16, 12, 0, 2 * Math.PI);
    drawn.fill();
    let link = document.querySelector("link[rel~='icon']");
    if (!link) document.head.append((link = Object.assign(document.createElement("link"), { rel: "icon" })));
    Object.assign(link, { type: "image/png", href: canvas.toDataURL() });
  }

  document.addEventListener("click", (event) => {
    const chip = event.target.closest(".chip[data-stat]");
    if (chip) return set("stat", { value: chip.dataset.stat });
    if (event.target.closest("#unfold")) return document.querySelector(".overview")?.classList.add("unfolded");
    // Links to layers hand on the query. The names of the map's rows: a layer's name is a link, a block's name folds.
    const link = event.target.closest(".overview a");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      event.stopPropagation(); // from dcc.Link
      return window.rootDashView.open(link.href.baseVal ?? link.href, held("selected").data?.step);
    }
    const tick = event.target.closest("#map .ytick text");
    const name = tick?.__data__?.text ?? "";
    if (/^[▸▾] /.test(name)) fold(document.querySelector("#map .js-plotly-plot").layout.meta.rows[tick.__data__.x]);
  }, true);

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    overview: {
      // A click on a cell selects its layer at the first step of the column; a click on a block's cell shows its layers.
      openCell(click, figure) {
        const cell = click && click.points && click.points.find((point) => point.z !== undefined);
        const { layers, blocks, starts } = (figure && figure.layout && figure.layout.meta) || {};
        if (!cell || !layers) return;
        if (cell.y in blocks) return fold(blocks[cell.y]);
        if (!(cell.y in layers)) return;
        const step = starts.filter((start) => start <= cell.x).pop() ?? starts[0];
        address.keep({ [address.selected]: layers[cell.y], [address.step]: step });
        set("selected", { data: { layer: layers[cell.y], step } });
        document.activeElement?.blur(); // Enter opens the layer, and presses no chip again
      },
      // What the address selects.
      select(view) {
        const none = { layer: null, step: null };
        return view && view.page === "overview" ? { layer: view.chosen ?? null, step: view.step ?? null } : none;
      },
      mark(chosen) { window.rootDashPlots.mark(chosen?.step ?? null, chosen?.layer ?? null); },
      // The panels of the selection are drawn again for another selection, and for a new frame if they show the newest.
      selected(cursor, chosen, before) {
        const { layer = null, step = null } = chosen || {};
        const next = step === null ? { layer, step, cursor: cursor ? cursor.id : 0 } : { layer, step };
        return JSON.stringify(next) === JSON.stringify(before) ? window.dash_clientside.no_update : next;
      },
      // The chip of the question that the statistic answers.
      statistic(name) {
        for (const chip of document.querySelectorAll(".chip[data-stats]"))
          chip.setAttribute("aria-pressed", String(chip.dataset.stats.split(" ").includes(name)));
      },
      // How many findings last, and the worst, in the tab's title and icon.
      severity(card, view) {
        const { "data-sick": sick, "data-worst": worst } = (card && card.props) || {};
        if (!view || sick === undefined) return;
        document.title = `${Number(sick) > 0 ? `${sick} sick · ` : ""}${view.name} · root-dash`;
        icon(INKS[worst]);
      },
    },
  });
})();
