// Watch whether the server answers. If a callback is refused, fails or gets no answer, a bar on the page says why, and
// the panels that may be old are grey. The script asks the server again, ever more rarely. When the server answers, the
// address is routed anew, so that the page shows what the address and the header name.
(function () {
  const CALLBACK = "/_dash-update-component";
  const ROUTE = "page.children"; // an output of the callback that answers the address
  const PATIENCE = 30000; // ms after which a request counts as not answered
  const FIRST = 1000, LONGEST = { away: 10000, token: 30000, gone: 60000, fault: 60000 }; // ms until the next try
  const WORDS = {
    away: "The server does not answer: trying again.",
    token: "The server asks for its token: open the URL that root-dash serve printed.",
    gone: "The database no longer holds this run or layer: looking again.",
    fault: "The server could not draw the grey panels. Its log says why. Trying again.",
  };
  const failed = new Set(); // the outputs of callbacks whose last request failed, and STREAM
  const STREAM = "stream";
  let kind = "away", wait = FIRST, pending = 0, next = null, settling = null, leaving = false;

  const ask = window.fetch.bind(window);
  const set = (id, props) => window.dash_clientside?.set_props?.(id, props);
  const kindOf = (status) => (status === 401 ? "token" : status === 404 ? "gone" : "fault");
  const lost = () => kind === "away" || kind === "token";

  function show() {
    const any = failed.size > 0;
    set("connection", { hidden: !any });
    if (any) set("connection-text", { children: WORDS[kind] });
    const whole = any && (lost() || [...failed].some((output) => output.includes(ROUTE)));
    document.body.classList.toggle("stale", whole);
    for (const card of document.querySelectorAll(".card.stale")) card.classList.remove("stale");
    if (!any || whole) return;
    for (const output of failed)
      for (const part of output.replace(/^\.\.|\.\.$/g, "").split("..."))
        document.getElementById(part.split(".")[0])?.closest(".card")?.classList.add("stale");
  }

  function fail(output, why) {
    if (leaving) return;
    clearTimeout(settling);
    failed.add(output);
    kind = why;
    show();
    if (next === null) plan();
  }

  // The trouble is over only when the page is drawn: the page asks for the figures after the view.
  function settle() {
    clearTimeout(settling);
    if (failed.size === 0 && pending === 0) settling = setTimeout(() => {
      clearTimeout(next);
      next = null;
      wait = FIRST;
      show();
    }, 300);
  }

  function plan() {
    clearTimeout(next);
    next = setTimeout(retry, wait);
    wait = Math.min(2 * wait, LONGEST[kind]);
  }

  // Send a small request first: a server that is away or refuses is not asked for figures.
  async function probe() {
    try {
      const answer = await ask("/assets/theme.js", {
        method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
      });
      return answer.ok ? null : kindOf(answer.status);
    } catch { return "away"; }
  }

  async function retry() {
    clearTimeout(next);
    next = null;
    if (failed.size === 0 || document.hidden) return;
    const why = await probe();
    if (why !== null) kind = why;
    else {
      failed.delete(STREAM);
      if (failed.size > 0) {
        window.dispatchEvent(new PopStateEvent("popstate")); // dcc.Location may hold an older query
        set("retry", { n_intervals: Date.now() });
      }
    }
    show();
    if (failed.size > 0) plan();
    else settle();
  }

  function now() {
    wait = FIRST;
    if (failed.size > 0) retry();
  }

  window.fetch = async function (url, options) {
    if (!String(url?.url ?? url).includes(CALLBACK)) return ask(url, options);
    let output = "";
    try { output = JSON.parse(options.body).output; } catch { /* not a request of Dash */ }
    const late = setTimeout(() => fail(output, "away"), PATIENCE);
    pending += 1;
    let why = "away";
    try {
      const answer = await ask(url, options);
      why = answer.ok ? null : kindOf(answer.status);
      // Dash reads the body of a 401 twice, which throws and leaves its callback pending for ever.
      return answer.status === 401 ? new Response("", { status: 403 }) : answer;
    } finally {
      pending -= 1;
      clearTimeout(late);
      if (why !== null) fail(output, why);
      else if (output.includes(ROUTE)) failed.clear(); // the page asks for every figure anew
      else failed.delete(output);
      settle();
    }
  };

  addEventListener("pagehide", () => { leaving = true; });
  addEventListener("pageshow", () => { leaving = false; });
  addEventListener("online", now);
  addEventListener("focus", now);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) now(); });
  document.addEventListener("click", (event) => { if (event.target.closest("#connection-retry")) now(); });

  window.rootDashConnection = {
    failing: () => failed.size > 0,
    // The stream broke off: find out whether the server is the cause.
    async doubt() {
      if (failed.has(STREAM)) return;
      const why = await probe();
      if (why !== null) fail(STREAM, why);
    },
  };
})();
