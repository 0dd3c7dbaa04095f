// Lines of pairs or groups, in TRL's forms, read into items of the service.

const MOST_ROWS = 20000, MOST_CHARACTERS = 32 * 1024 * 1024;

const isMessages = (value) => Array.isArray(value) && value.length > 0
  && value.every((message) => message && typeof message.role === "string" && typeof message.content === "string");
const areTexts = (values) => values.every((value) => typeof value === "string");

/** The text of a file. Throws an Error where it is too large, or not in UTF-8, which would change what is scored. */
async function textOfFile(file) {
  if (file.size > 4 * MOST_CHARACTERS) throw new Error(`the file has ${counted(file.size)} bytes; sweep over a part`);
  const bytes = await file.arrayBuffer();
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("the file is not in UTF-8; save it so");
  }
}

/** The rows of a file: [{line, size, items, texts, head, worth}]. Throws an Error that names the first lines that are none. */
function readRows(text) {
  if (text.length > MOST_CHARACTERS) throw new Error(`${counted(text.length)} characters, limit ${counted(MOST_CHARACTERS)}; sweep over a part`);
  const rows = [], mistakes = [];
  text.split("\n").forEach((line, index) => {
    if (!line.trim()) return;
    try {
      rows.push({ line: index + 1, size: line.length, ...readRow(JSON.parse(line.trim())) }); // trim: a BOM too
    } catch (error) {
      mistakes.push(`line ${index + 1}: ${error instanceof SyntaxError ? "no JSON" : error.message}`);
    }
  });
  if (mistakes.length) {
    const more = mistakes.length > 5 ? `; and ${counted(mistakes.length - 5)} more` : "";
    throw new Error(mistakes.slice(0, 5).join("; ") + more);
  }
  if (!rows.length) throw new Error("there is no line; paste some, or choose a file");
  if (rows.length > MOST_ROWS) throw new Error(`${counted(rows.length)} lines, limit ${counted(MOST_ROWS)}; sweep over a part`);
  return rows;
}

/** One line as {items, texts, head, worth}; `worth` orders the texts: larger is better, null where nothing is known. */
function readRow(row) {
  if (row === null || typeof row !== "object") throw new Error("no object");
  if ("completions" in row) return readGroup(row);
  if (!("chosen" in row && "rejected" in row)) throw new Error("neither chosen and rejected nor completions");
  return { ...readPair(row), worth: [1, 0] };
}

function readGroup({ prompt, messages = prompt, completions, scores = null }) {
  if (!Array.isArray(completions) || !completions.length || !areTexts(completions)) throw new Error("completions is no list of texts");
  if (scores !== null && !(Array.isArray(scores) && scores.length === completions.length && scores.every(Number.isFinite))) {
    throw new Error("scores is no list of one number for each completion");
  }
  return { ...onHead(messages, completions), worth: scores };
}

function readPair({ prompt, chosen, rejected }) {
  const both = [chosen, rejected];
  if (areTexts(both)) {
    if (prompt === undefined || prompt === null) return { items: both.map((text) => ({ text })), texts: both, head: { texts: true } };
    return onHead(prompt, both);
  }
  if (!both.every(isMessages)) throw new Error("chosen and rejected are neither texts nor lists of messages with texts");
  const before = prompt ? both : both.map((messages) => messages.slice(0, -1));
  if (prompt ? both.some((messages) => messages.length !== 1) : JSON.stringify(before[0]) !== JSON.stringify(before[1])) {
    throw new Error(prompt ? "chosen or rejected has more than one message beside a prompt" : "chosen and rejected differ before their last message");
  }
  return onHead(prompt || before[0], both.map((messages) => messages.at(-1).content));
}

/** Completions on a prompt, which is a text or messages. */
function onHead(head, texts) {
  if (typeof head === "string") return { items: [{ prompt: head, completions: texts }], texts, head: { prompt: head } };
  if (isMessages(head)) return { items: [{ messages: head, completions: texts }], texts, head: { messages: head } };
  throw new Error("prompt is neither a text nor a list of messages with texts");
}
