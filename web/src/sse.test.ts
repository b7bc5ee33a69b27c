import { expect, test } from "vitest";
import { dataOf } from "./sse";

test("events are put together however they arrive", async () => {
  const bytes = new TextEncoder().encode(': hello\n\ndata: {"a":"ü"}\r\n\r\ndata:x\ndata: y\n\ndata: unfinished');
  for (const size of [1, 3, 1000]) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
        controller.close();
      },
    });
    const events: string[] = [];
    for await (const data of dataOf(new Response(body))) events.push(data);
    expect(events).toEqual(['{"a":"ü"}', "x\ny"]);
  }
});
