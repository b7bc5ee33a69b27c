import { expect, test } from "vitest";
import { dragged, FITS, grey, moved, zoomed } from "./window";

test("whole numbers follow the linear rule of DICOM", () => {
  const soft = { level: 40, width: 400 };
  // (x - 39.5) / 399 + 0.5, as dcmtk and medv_ray have it
  expect([-160, -159, 40, 239, 240].map((x) => grey(x, soft, 1))).toEqual([0, 1, 128, 255, 255]);
  expect([-1000, 3000].map((x) => grey(x, soft, 1))).toEqual([0, 255]);
  expect([0, 1].map((x) => grey(x, { level: 1, width: 1 }, 1))).toEqual([0, 255]);
});

test("values between 0 and 1 are windowed as well", () => {
  expect([0, 0.5, 1].map((x) => grey(x, { level: 0.5, width: 1 }, 1 / 65535))).toEqual([0, 128, 255]);
});

test("a drag never gives a window that shows nothing", () => {
  expect(dragged({ level: 40, width: 400 }, -9999, 0, 4096, 1).width).toBe(1);
  expect(dragged({ level: 40, width: 400 }, 100, 60, 600, 1)).toEqual({ level: 100, width: 500 });
});

test("zoom keeps the point under the pointer and the frame covered", () => {
  expect(zoomed(FITS, 2, 0.5, 0.5)).toEqual({ scale: 2, x: -0.5, y: -0.5 });
  expect(zoomed(FITS, 4, 0, 1)).toEqual({ scale: 4, x: 0, y: -3 });
  expect(zoomed({ scale: 4, x: 0, y: -3 }, 0.01)).toEqual(FITS);
  expect(moved({ scale: 2, x: -0.5, y: -0.5 }, 9, -9)).toEqual({ scale: 2, x: 0, y: -1 });
});
