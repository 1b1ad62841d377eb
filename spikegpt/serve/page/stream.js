// Events of the server, as they come.

/** The answer of the server as JSON; an Error with its words and its status if it refused. */
export async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

/** Yield each event that the server sends in answer to `fields`. */
export async function* events(path, fields, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(fields), signal });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function refusal(answer) {
  let said = `the server answered ${answer.status}`;
  try {
    said = (await answer.json()).error.message;
  } catch {
    // no JSON: the status is all there is
  }
  return Object.assign(new Error(said), { status: answer.status });
}
