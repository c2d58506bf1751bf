// The panel on rope scaling: the file's positions in words, and as a figure to scale.

import { capitalized, el, number, svg, tokens } from "./dom.js";

const WIDTH = 560;
const MARGIN = 14;
const INNER = WIDTH - 2 * MARGIN;
const TOP = 46;
const BOTTOM = 152;
const LINE_COUNT = 16;

const KINDS = {
  none: "unscaled",
  linear: "linear (Position Interpolation)",
  yarn: "YaRN",
  llama3: "Llama 3's",
  longrope: "LongRoPE",
  learned: "a learned table",
  alibi: "ALiBi",
};

/** Return the panel's content; `used` is the number of tokens of the conversation. */
export function ropeScalingPanel(about, used) {
  const { rope } = about;
  const trained = rope.original_context_length;
  const rows = [
    ["Rope scaling", KINDS[rope.kind] ?? rope.kind],
    ["Factor", `${+rope.factor.toPrecision(6)}`],
    ["rope_theta", rope.base ? number(rope.base) : "none"],
    ["Original context", tokens(trained)],
    ["Extended context", tokens(rope.context_length)],
    ["Context of this server", tokens(about.context_length)],
  ];
  const notes = [...about.position_notes];
  if (rope.overridden) notes.push("These values were set when the server was started; the file has others.");
  return [
    el("p", { className: "lead" }, explanation(rope)),
    figure(rope, about.context_length, used),
    el("dl", { className: "facts" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("p", { className: "fine" }, capitalized(`${rope.explained}.`)),
    ...notes.map((note) => el("p", { className: "fine" }, capitalized(note))),
    el("p", { className: "fine" }, modelSummary(about)),
  ];
}

function explanation(rope) {
  const [trained, extended] = [number(rope.original_context_length), number(rope.context_length)];
  const factor = +rope.factor.toPrecision(4);
  if (rope.kind === "linear")
    return (
      `The model was trained on ${trained} positions. This file divides every position by ${factor}, so that ` +
      `${extended} tokens fall between the positions of the training, instead of after their end.`
    );
  if (rope.kind === "yarn" || rope.kind === "llama3")
    return (
      `The model was trained on ${trained} positions. This file divides the low frequencies, which encode long ` +
      `distances, by ${factor}, and leaves the high ones, which encode short distances: so ${extended} tokens fit.`
    );
  if (rope.kind === "longrope")
    return `The model was trained on ${trained} positions; each frequency is divided by a factor of its own, so that ${extended} tokens fit.`;
  if (rope.kind === "none")
    return `Positions are not scaled: the model was trained on ${extended} of them.`;
  return `This model does not use RoPE. Its context window is ${extended} tokens.`;
}

/** Draw the positions of the text at the top, and where the model sees them at the bottom, at the same scale. */
function figure(rope, window, used) {
  const longest = rope.context_length;
  const divides = ["linear", "yarn", "llama3"].includes(rope.kind) ? rope.factor : 1;
  const scalesUnevenly = ["yarn", "llama3"].includes(rope.kind);
  const x = (position) => MARGIN + (INNER * position) / longest;
  const scaled = (position) => x(position / divides);
  const end = Math.min(used, longest);
  const trained = rope.original_context_length;

  const rays = Array.from({ length: LINE_COUNT + 1 }, (_, index) => (longest * index) / LINE_COUNT);
  const element = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} 204`, role: "img", class: "picture", "aria-labelledby": "picture-title" },
    titleElement(
      "picture-title",
      `${number(longest)} positions of the text above; below, at the same scale, the ${number(trained)} the model ` +
        `was trained on, and where those above fall. This conversation has ${number(used)}.`,
    ),
    svg("rect", { x: x(0), y: BOTTOM, width: x(trained) - x(0), height: 12, rx: 3, class: "trained" }),
    svg("rect", { x: x(0), y: TOP - 12, width: INNER, height: 12, rx: 3, class: "text" }),
    svg("rect", { x: x(0), y: TOP - 12, width: Math.max(x(end) - x(0), 0), height: 12, rx: 3, class: "used" }),
    svg("rect", { x: x(0), y: BOTTOM, width: Math.max(scaled(end) - x(0), 0), height: 12, rx: 3, class: "used" }),
    ...(scalesUnevenly
      ? rays
          .filter((position) => position <= trained)
          .map((position) => ray(x(position), x(position), "ray fast"))
      : []),
    ...rays.map((position) => ray(x(position), scaled(position), position <= end ? "ray used" : "ray")),
    label(x(0), TOP - 22, "the text"),
    label(x(longest), TOP - 22, tokens(longest), "end"),
    label(x(0), BOTTOM + 30, "the positions of the training"),
    ...(trained < longest && x(longest) - x(trained) > 150
      ? [
          label(x(trained) + 8, BOTTOM + 10, `${number(trained)} positions`),
          svg("line", { x1: x(trained) + 110, x2: x(longest), y1: BOTTOM + 6, y2: BOTTOM + 6, class: "unknown" }),
          label(x(longest), BOTTOM + 30, "not seen in training", "end"),
        ]
      : [label(x(longest), BOTTOM + 30, `${number(trained)} positions`, "end")]),
  );
  if (window < longest) {
    element.append(svg("line", { x1: x(window), x2: x(window), y1: TOP - 16, y2: TOP + 4, class: "limit" }));
  }
  const caption =
    used > 0 && divides > 1
      ? `This conversation ends at position ${number(used)}, which ${scalesUnevenly ? "the low frequencies see" : "the model sees"} as ${number(used / divides)}.`
      : used > 0
        ? `This conversation has ${number(used)} of them.`
        : "Each line is one position of the text, and where it falls.";
  const limit = window < longest ? " The mark at the top is where this server's context window ends." : "";
  return el("figure", {}, element, el("figcaption", {}, caption + limit));
}

const titleElement = (id, text) => {
  const element = svg("title", { id });
  element.textContent = text;
  return element;
};

const ray = (from, to, kind) => svg("line", { x1: from, y1: TOP, x2: to, y2: BOTTOM, class: kind });

function label(x, y, text, anchor = "start") {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function modelSummary(about) {
  const types = Object.keys(about.types).join(", ");
  const size = `${(about.bytes / 2 ** 20).toLocaleString("en-US", { maximumFractionDigits: 0 })} MiB`;
  return `${about.name ?? about.model}: ${about.architecture}, ${(about.parameters / 1e6).toLocaleString("en-US", { maximumFractionDigits: 0 })} million parameters, ${size} (${types}); concurrent answers: ${about.slots}.`;
}
