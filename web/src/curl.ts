// The page's question as a command for a shell.

import { address, type Question } from "./api";

/** Stands in for the image's bytes while the request is turned into text. */
export const IMAGE = "__MEDV_IMAGE__";

/** Not streamed: one JSON document is what one wants in a terminal. */
export function curl(question: Question, type: string, fileName: string): string {
  const image = `data:${type};base64,$(base64 -w0 ${quoted(fileName)})`;
  const body = hereDoc(JSON.stringify(question, null, 2)).replace(IMAGE, () => image);
  return [
    `curl -sS ${quoted(address("v1/chat/completions"))} \\`,
    `  -H "Authorization: Bearer $MEDV_API_KEY" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  --data-binary @- <<MEDV`,
    body,
    "MEDV",
    "",
  ].join("\n");
}

/** Text as the shell gives it back: in an unquoted here-document \ $ and ` mean something. */
const hereDoc = (text: string): string => text.replace(/[\\$`]/g, "\\$&");

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;
