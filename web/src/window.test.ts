import { expect, test } from "vitest";
import { dragged, FITS, grey, moved, zoomed, type Values } from "./window";

test("whole numbers follow the linear rule of DICOM", () => {
  const soft = { level: 40, width: 400 };
  // (x - 39.5) / 399 + 0.5, as dcmtk and medv_ray have it
  expect([-160, -159, 40, 239, 240].map((x) => grey(x, soft, "LINEAR"))).toEqual([0, 1, 128, 255, 255]);
  expect([-1000, 3000].map((x) => grey(x, soft, "LINEAR"))).toEqual([0, 255]);
  expect([0, 1].map((x) => grey(x, { level: 1, width: 1 }, "LINEAR"))).toEqual([0, 255]);
});

test("an exact and a curved window follow their own rules", () => {
  expect([0, 0.5, 1].map((x) => grey(x, { level: 0.5, width: 1 }, "LINEAR_EXACT"))).toEqual([0, 128, 255]);
  expect(grey(7, { level: 7, width: 0 }, "LINEAR_EXACT")).toBe(0);
  // 255 / (1 + exp(-4 (x - 40) / 400))
  expect([-160, 40, 140].map((x) => grey(x, { level: 40, width: 400 }, "SIGMOID"))).toEqual([30, 128, 186]);
});

const values = (range: [number, number], step: number, rule: Values["function"]): Values => ({
  ...{ columns: 0, rows: 0, numbers: new Uint16Array(), low: range[0], inverted: false, unit: "", overlay: null },
  ...{ range, step, function: rule },
});

test("a drag never gives a window that shows nothing", () => {
  const whole = values([0, 600], 1, "LINEAR");
  expect(dragged({ level: 40, width: 400 }, -9999, 0, whole).width).toBe(1);
  expect(dragged({ level: 40, width: 400 }, 100, 60, whole)).toEqual({ level: 100, width: 500 });
  expect(dragged({ level: 0.5, width: 1 }, -9999, 0, values([0, 1], 1e-5, "LINEAR_EXACT")).width).toBe(1e-5);
  // half SUVs under the rule of whole numbers
  expect(dragged({ level: 5, width: 8 }, -9999, 0, values([0, 20], 0.5, "LINEAR")).width).toBe(1);
});

test("a narrow window moves slowly, and a width of 1 still moves", () => {
  const ct = values([-1024, 3071], 1, "LINEAR");
  expect(dragged({ level: 40, width: 80 }, 50, 0, ct)).toEqual({ level: 40, width: 130 });
  expect(dragged({ level: 40, width: 1 }, 3, 0, ct).width).toBe(4);
});

test("zoom keeps the point under the pointer and the frame covered", () => {
  expect(zoomed(FITS, 2, 0.5, 0.5)).toEqual({ scale: 2, x: -0.5, y: -0.5 });
  expect(zoomed(FITS, 4, 0, 1)).toEqual({ scale: 4, x: 0, y: -3 });
  expect(zoomed({ scale: 4, x: 0, y: -3 }, 0.01)).toEqual(FITS);
  expect(moved({ scale: 2, x: -0.5, y: -0.5 }, 9, -9)).toEqual({ scale: 2, x: 0, y: -1 });
});
