// A layer's page without the server: the steps that were recorded, and the shown step.
(function () {
  const address = window.rootDashAddress;
  const skip = () => window.dash_clientside.no_update;
  const set = (id, props) => window.dash_clientside.set_props(id, props);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const count = (step) => step.toLocaleString("en-US");

  // The recorded steps in ascending order: [first, last, interval] of each stretch of one interval.
  let stretches = [];

  // The last recorded step at or before a step; the first if there is none.
  function below(step) {
    let found = stretches.length ? stretches[0][0] : step;
    for (const [first, last, interval] of stretches)
      if (first <= step) found = Math.min(last, first + Math.floor((step - first) / interval) * interval);
    return found;
  }

  // The first recorded step after a step; the last if there is none.
  function above(step) {
    for (const [first, last, interval] of stretches)
      if (step < last) return step < first ? first : first + (Math.floor((step - first) / interval) + 1) * interval;
    return stretches.length ? stretches[stretches.length - 1][1] : step;
  }

  function add(step) {
    const newest = stretches[stretches.length - 1];
    if (newest && step <= newest[1]) return;
    if (newest && step - newest[1] === newest[2]) newest[1] = step;
    else stretches.push([step, step, 1]);
  }

  // While the steps change quickly, as under a held key, panels are drawn for the last of them alone.
  const PAUSE = 250, QUICK = 1500; // ms; while the page draws, keys wait in the browser
  const changed = {};
  function settled(id, next) {
    const now = performance.now(), quick = now - (changed[id] ?? -Infinity) < QUICK;
    changed[id] = now;
    if (!quick || next.step === null) return next;
    return new Promise((done) => setTimeout(() => done(changed[id] === now ? next : skip()), PAUSE));
  }

  // Previous and next recorded step. Not in a callback: a callback's answer is dropped if the next click is faster.
  document.addEventListener("click", (event) => {
    const id = event.target.closest("#earlier, #later")?.id;
    const value = id && window.dash_component_api.getLayout("step-slider")?.props.value;
    if (typeof value !== "number") return;
    const next = id === "earlier" ? below(value - 1) : above(value);
    if (next !== value) address.keep({ [address.step]: next }); // now: a layer that arrives meanwhile reads it
    set("step-slider", { value: next });
  });

  // "Go to onset": the first recording at the onset or after it.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-onset]");
    if (!link) return;
    event.preventDefault();
    if (event.detail > 0) link.blur(); // after a mouse, space follows the newest step again
    set("step-slider", { value: above(Number(link.dataset.onset) - 1) });
    set("follow", { checked: false });
  });

  window.rootDashSteps = { below, above };

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    layer: {
      // The steps of a layer: the slider goes to the step of the address, as it is now, or to the newest.
      known(recorded, most) {
        stretches = (recorded || []).map((stretch) => [...stretch]);
        const step = new URLSearchParams(window.location.search).get(address.step);
        const named = /^\d{1,18}$/.test(step ?? "") && stretches.length > 0;
        return [named ? below(Number(step)) : most, !named];
      },
      // A new recording: the slider grows, and moves along if the page follows the newest step.
      advance(cursor, follow) {
        if (!cursor) return [skip(), skip()];
        add(cursor.step);
        if (document.querySelector("#step-slider:active")) return [skip(), skip()];
        return [cursor.step, follow ? cursor.step : skip()];
      },
      // The slider stands on recorded steps alone.
      snap(value) { return value === below(value) ? skip() : below(value); },
      // If the user moves the slider away from its end, the page stops following the newest step.
      letGo(value, most, follow) { return follow && value < most ? false : skip(); },
      catchUp(follow, most, value) { return follow && value !== most ? most : skip(); },
      shown(cursor, value, follow, before) {
        const next = follow ? { step: null, cursor: cursor ? cursor.id : 0 } : { step: value };
        return same(next, before) ? skip() : settled(window.dash_clientside.callback_context.outputs_list.id, next);
      },
      step(value, follow) {
        address.keep({ [address.step]: follow ? null : value });
        window.rootDashPlots.mark(follow ? null : value);
        return value === null || value === undefined ? "" : `step ${count(value)}`;
      },
      // The panels that hold the evidence of the verdict, as the strip names them.
      evidence(strip) {
        const panels = strip?.props?.["data-evidence"]?.split(" ").filter(Boolean);
        for (const card of document.querySelectorAll(".card.evidence")) card.classList.remove("evidence");
        for (const id of panels || []) document.getElementById(id)?.closest(".card")?.classList.add("evidence");
      },
    },
  });
})();
