// Requests to the service that this page came from, and what is shown when one fails.

let apiKey = ""; // in this page's memory and nowhere else

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

/** The response of a route, by its path below this page. */
async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey) headers["Authorization"] = `Bearer ${apiKey}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", body: body === undefined ? undefined : JSON.stringify(body),
      headers, signal, cache: "no-store", credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "No answer", "The service could not be reached. Is it still running?");
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  const detail = typeof document.detail === "string" ? document.detail : response.statusText;
  if (response.status === 401) askForKey();
  throw new Problem(response.status, document.title || "Refused", detail, response.headers.get("Retry-After"));
}

function askForKey() {
  $("key-button").hidden = false;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** Milliseconds of each part of the work, as the header Server-Timing names them. */
function timings(response) {
  const parts = (response.headers.get("Server-Timing") || "").split(",");
  return parts.map((part) => /^\s*(\w+);dur=([\d.]+)/.exec(part)).filter(Boolean)
    .map(([, name, milliseconds]) => [name, Number(milliseconds)]);
}

/** Show a problem, with a button that tries again where that may help. */
function showProblem(place, problem, retry) {
  const wait = problem.retryAfterS ? ` The service asks to wait ${problem.retryAfterS} s.` : "";
  const code = problem.status ? ` (${problem.status})` : "";
  const box = make("div", { class: "problem", role: "alert" },
    make("strong", {}, problem.title + code), make("p", {}, problem.detail + wait));
  if (problem.isPassing && retry) {
    box.append(make("button", { type: "button", onclick: () => { place.replaceChildren(); retry(); } }, "Try again"));
  }
  place.replaceChildren(box);
}

/** Why a text has no score, without its place in the request, which the reader has not written. */
const reason = ({ detail }) => detail && detail.replace(/^items\[\d+\](\.\w+(\[\d+\])?|\[\d+\])*:\s*/, "");

/** What failed in this page: a problem of the service, or a mistake of ours, which the console of the browser has. */
function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem(-1, "This page failed", String(error.message || error));
}
