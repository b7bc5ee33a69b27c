// Server-sent events of a POST: EventSource can only GET.

/** The text of each event's `data` lines, in order. */
export async function* dataOf(response: Response): AsyncGenerator<string> {
  const reader = response.body?.getReader();
  if (!reader) return;
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      rest = events.pop() ?? "";
      for (const event of events) {
        const data = dataLines(event);
        if (data) yield data;
      }
    }
  } finally {
    // A consumer that stops early must not keep the connection, and with it the model, busy.
    await reader.cancel().catch(() => undefined);
  }
}

function dataLines(event: string): string {
  return event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""))
    .join("\n");
}
