// Asks the service. Invariant: what is shown as curl and as Python is the request that was sent.

let key = "";

export function useKey(given) {
  key = given;
}

// An answer that says why there is none.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Sends `body` as JSON, or gets `path` where there is none. Returns {path, body, value, phases, total}: the answer, the
// milliseconds of each phase on the server, and those from sending to reading. Throws Refused.
export async function ask(path, body) {
  const begun = performance.now();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, text;
  try {
    response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body),
    });
    text = await response.text();
  } catch {
    throw new Refused("The server does not answer.", 0);
  }
  const total = performance.now() - begun;
  const value = parsed(text);
  if (!response.ok) {
    const again = response.headers.get("Retry-After");
    const message = value?.error?.message ?? value?.error ?? text;
    throw new Refused(`${response.status}: ${message}${again ? ` (come again in ${again} s)` : ""}`, response.status);
  }
  return { path, body, value, phases: phases(response.headers.get("Server-Timing") ?? ""), total };
}

function address(path) {
  return new URL(path, document.baseURI).href;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function phases(header) {
  return header.split(", ").map((part) => part.split(";dur=")).map(([name, milliseconds]) => [name, Number(milliseconds)]);
}

// The request for a shell.
export function curl({ path, body }) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const secret = key ? ` -H "Authorization: Bearer $KEY"` : "";
  return `curl ${address(path)} -H 'Content-Type: application/json'${secret} -d '${quoted}'`;
}

// The request in Python, with the standard library alone.
export function python({ path, body }) {
  const secret = key ? `, "Authorization": f"Bearer {os.environ['KEY']}"` : "";
  return [
    `import json${key ? ", os" : ""}, urllib.request`, "",
    `body = ${literal(body)}`,
    `headers = {"Content-Type": "application/json"${secret}}`,
    `request = urllib.request.Request("${address(path)}", json.dumps(body).encode(), headers)`,
    "print(json.load(urllib.request.urlopen(request)))",
  ].join("\n");
}

function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value); // JSON's texts and numbers are Python's too
  return `{${Object.entries(value).map(([name, of]) => `${JSON.stringify(name)}: ${literal(of)}`).join(", ")}}`;
}
