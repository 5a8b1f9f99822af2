// The stream tells that a run has grown: an event is {id, step, time, kinds}. The script puts the event's id into the
// cursor stores, at most twice a second and never while the page still draws; the server's callbacks do the rest.
(function () {
  const PERIOD = 500;
  const QUIET_AFTER = 20; // seconds without a frame after which the page no longer says "live"
  let source = null, run = null, last = null, pending = {}, sent = 0, ended = false, broken = false, skew = 0;
  let asked = 0; // when the page last asked whether a quiet run has ended
  let reopening = null;

  const set = (id, props) => window.dash_clientside.set_props(id, props);
  const drawing = () => document.querySelector("#page [data-dash-is-loading='true']") !== null;

  function close() {
    if (source) source.close();
    source = null;
  }

  function open() {
    close();
    clearTimeout(reopening);
    if (run === null || ended || document.hidden) return;
    // If the server refuses or is away, only connection.js asks again.
    if (window.rootDashConnection.failing()) { reopening = setTimeout(open, 1000); return; }
    const after = last ? last.id : 0;
    source = new EventSource(`/api/v1/runs/${run}/stream?after=${after}`);
    source.onopen = () => { broken = false; };
    source.onerror = () => {
      broken = true;
      window.rootDashConnection.doubt();
      // The browser reopens a broken connection by itself, but not a refused connection.
      if (source && source.readyState === EventSource.CLOSED) reopening = setTimeout(open, 3000);
    };
    source.onmessage = (event) => {
      broken = false;
      last = JSON.parse(event.data);
      skew = Math.min(skew, Date.now() / 1000 - last.time); // a trainer's clock may run ahead of the browser's
      pending.cursor = last;
      for (const kind of last.kinds) pending[`cursor-${kind}`] = { id: last.id, step: last.step };
    };
  }

  function flush() {
    const now = Date.now();
    if (!pending.cursor || document.hidden || now - sent < PERIOD || (drawing() && now - sent < 10000)) return;
    const due = pending;
    pending = {};
    sent = now;
    for (const [id, data] of Object.entries(due)) set(id, { data });
  }

  function ago(seconds) {
    if (seconds < 9.95) return `${seconds.toFixed(1)} s ago`;
    for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]])
      if (seconds >= unit) return `${Math.round(seconds / unit)} ${name} ago`;
    return `${Math.round(seconds)} s ago`;
  }

  function tell() {
    if (run === null || !document.getElementById("status")) return;
    const age = last ? Math.max(0, Date.now() / 1000 - last.time - skew) : null;
    const state = ended ? "ended" : broken ? "reconnecting" : !last ? "waiting" : age > QUIET_AFTER ? "quiet" : "live";
    if (state === "quiet" && Date.now() - asked > 1000 * QUIET_AFTER) {
      asked = Date.now();
      set("quiet", { data: asked });
    }
    set("status", { className: `status ${state}` });
    set("status-text", { children: state === "waiting" ? "waiting for the first frame" : state });
    set("status-step", { children: last ? `step ${last.step.toLocaleString("en-US")}` : "" });
    set("status-age", { children: last ? ago(age) : "" });
  }

  setInterval(flush, 100);
  setInterval(tell, 500);
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));

  window.rootDashStream = {
    end(which) {
      if (which === null || which !== run) return;
      ended = true;
      close();
      tell();
    },

    // Follow the run of a view; another view of the same run changes nothing.
    follow(view) {
      const wanted = view && view.run !== undefined ? view.run : null;
      if (wanted === run && ended === Boolean(view && view.ended)) return;
      run = wanted;
      last = view && view.latest ? view.latest : null;
      ended = Boolean(view && view.ended);
      pending = {};
      broken = false;
      skew = 0;
      open();
      if (run !== null) tell();
      else {
        set("status", { className: "status" });
        for (const part of ["text", "step", "age"]) set(`status-${part}`, { children: "" });
      }
    },
  };
})();
