// The form that the next answers are asked in: nothing, choices, text with blanks, or a JSON schema.

import { ApiError, type Form } from "./api";

export type Kind = keyof Form;

export const KINDS: Record<Kind, string> = {
  choices: "Choices",
  canvas: "Text with blanks",
  json_schema: "JSON schema",
};

export const RULES: Record<Kind, string> = {
  choices: "One a line. The answer is one of them; each gets its probability, in one forward pass.",
  canvas:
    "Blanks: {{name:tokens=2..16}}, {{name:choice=CT|MR}}, {{name:int=0..99}}. What stands around them is given word for word.",
  json_schema: "The answer is JSON of this schema. A string takes 16 tokens, or as many as its x-tokens says.",
};

const schema = (properties: object): string => JSON.stringify({ type: "object", properties }, null, 2);
const string = { type: "string" };

export const EXAMPLES: Record<Kind, Record<string, string>> = {
  choices: {
    "Yes or no": "yes\nno\nuncertain",
    Modality: "CT\nMR\nX-ray\nultrasound\nmicroscopy",
  },
  canvas: {
    "One sentence": "There are {{cells:int=0..20}} large cells, and they are {{colour:choice=pink|purple|brown}}.",
    Report: `Modality: {{modality:choice=CT|MR|X-ray|ultrasound|microscopy}}
Organ: {{organ:tokens=1..4}}
Cells: {{cells:int=0..20}}
Vessel: {{vessel:choice=present|absent}}
Finding: {{finding:tokens=2..16}}`,
  },
  json_schema: {
    Findings: schema({ modality: { enum: ["CT", "MR", "microscopy"] }, abnormal: { type: "boolean" }, finding: string }),
    "A list": schema({ colours: { type: "array", items: { ...string, "x-tokens": 4 }, maxItems: 3 } }),
  },
};

/** Raises an Error for a schema that is no JSON. */
export function formOf(kind: Kind, text: string): Form {
  if (kind === "canvas") return { canvas: text };
  const lines = text.split("\n").map((line) => line.trim());
  if (kind === "choices") return { choices: lines.filter((line) => line !== "") };
  try {
    return { json_schema: JSON.parse(text) as unknown };
  } catch (error) {
    throw new FormError(text.trim() ? `This is no JSON: ${(error as Error).message}` : "Write a JSON schema first.");
  }
}

export class FormError extends Error {}

class FormBox {
  /** Null for free text. */
  kind = $state<Kind | null>(null);
  /** Each kind keeps what was written for it. */
  texts = $state<Record<Kind, string>>({ choices: "", canvas: "", json_schema: "" });
  open = $state(false);
  /** Why the last answer was refused; empty for nothing. */
  code = $state("");
  problem = $state("");

  /** Raises FormError. */
  get asked(): Form | null {
    return this.kind && formOf(this.kind, this.texts[this.kind]);
  }

  set(kind: Kind | null, text?: string): void {
    this.kind = kind;
    if (kind && text !== undefined) this.texts[kind] = text;
    this.praise();
  }

  /** Nothing is known to be wrong. */
  praise(): void {
    this.problem = this.code = "";
  }

  /** Whether it is the form that is to blame; then that is said beside it. */
  blame(error: unknown): boolean {
    const { kind } = this;
    const [code, param] = error instanceof ApiError ? [error.code, error.param] : ["", ""];
    // A form that is too long is a fault of all of `diffusion`; `diffusion.steps` is none of the form's.
    const ofForm = code === "E1309" || (code === "E1701" && ["diffusion", `diffusion.${kind}`].includes(param));
    if (kind === null || !(ofForm || error instanceof FormError)) return false;
    const message = (error as Error).message;
    this.problem = message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
    this.code = code;
    return (this.open = true);
  }

  clear(): void {
    this.set(null);
    this.texts = { choices: "", canvas: "", json_schema: "" };
  }
}

export const formBox = new FormBox();
