// Requests to the service that this page came from, and what is shown when one fails.

let apiKey = ""; // in this page's memory and nowhere else
let isKeyWanted = false; // since a request was refused for want of the right one

/** Why a request has no answer: the service's problem document, or that it could not be reached. */
class Problem extends Error {
  constructor(status, title, detail, retryAfterS = null) {
    super(detail);
    Object.assign(this, { status, title, detail, retryAfterS });
  }
  get isPassing() {
    return [0, 429, 503, 504].includes(this.status);
  }
}

/** What a route answers, by its path below this page: {content, headers}; `as` is "json" or "text". */
async function ask(path, { body, signal, as = "json" } = {}) {
  const headers = {};
  if (apiKey) headers["Authorization"] = `Bearer ${apiKey}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, content;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", body: body === undefined ? undefined : JSON.stringify(body),
      headers, signal, cache: "no-store", credentials: "omit", redirect: "error",
    });
    content = response.ok ? await response[as]() : await response.json().catch(() => ({}));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connectLater();
    throw new Problem(0, "No answer", error instanceof SyntaxError
      ? "What came is not JSON, so it is not the service’s own answer, or not all of it."
      : "The service could not be reached, or broke off. Is it still running?");
  }
  if (response.ok) return { content, headers: response.headers };
  if (response.status === 401) askForKey(apiKey ? "The service refuses this key." : "");
  if (response.status === 503) connectLater();
  const detail = typeof content.detail === "string" ? content.detail : response.statusText;
  throw new Problem(response.status, content.title || "Refused", detail, response.headers.get("Retry-After"));
}

/** Ask for a key, and say what is wrong with the one that was given. */
function askForKey(reason) {
  isKeyWanted = true;
  $("key-button").hidden = false;
  $("key-problem").textContent = reason;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** Milliseconds of each part of the work, as the header Server-Timing names them. */
function timings(headers) {
  const parts = (headers.get("Server-Timing") || "").split(",");
  return parts.map((part) => /^\s*(\w+);dur=([\d.]+)/.exec(part)).filter(Boolean)
    .map(([, name, milliseconds]) => [name, Number(milliseconds)]);
}

/** Show a problem, with a button that tries again where that may help. One that is shown already is not said again. */
function showProblem(place, problem, retry) {
  const wait = /^\d+$/.test(problem.retryAfterS) ? ` The service asks to wait ${problem.retryAfterS} s.` : "";
  const code = problem.status ? ` (${problem.status})` : "";
  const box = make("div", { class: "problem", role: "alert" },
    make("strong", {}, problem.title + code), make("p", {}, problem.detail + wait));
  if ((problem.isPassing || problem.status === 401) && retry) {
    const again = () => { place.replaceChildren(); place.focus(); retry(); };
    box.append(make("button", { type: "button", onclick: again }, "Try again"));
  }
  if (!place.firstChild || !place.firstChild.isEqualNode(box)) place.replaceChildren(box);
}

/** Why a text has no score, without its place in the request, which the reader has not written. */
const reason = ({ detail }) => detail && detail.replace(/^items\[\d+\](\.\w+(\[\d+\])?|\[\d+\])*:\s*/, "");

/** What failed in this page: a problem of the service, or a mistake of ours, which the console of the browser has. */
function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem(-1, "This page failed", String(error.message || error));
}
