"""The style sheet of report pages: light and dark, narrow and wide, and for print.

Lines have the colours of Okabe and Ito for colour-blind readers, darkened or lightened for contrast.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1c1e21; --quiet: #5b616b; --rule: #dfe2e7; --panel: #f5f6f8; --accent: #0b62a4;
  --line-0: #0067a8; --line-1: #c44e00; --line-2: #007d58; --line-3: #a8417f;
  --line-4: #8a6d00; --line-5: #2387b5; --line-6: #444a54;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --ink: #e8eaed; --quiet: #a0a7b3; --rule: #343943; --panel: #1e2127; --accent: #6cb8f0;
    --line-0: #5aaef0; --line-1: #ff9248; --line-2: #35c99a; --line-3: #e68ac0;
    --line-4: #e3c33c; --line-5: #8fd8ff; --line-6: #c3c9d3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 50rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2, figcaption { font-size: 1.1rem; font-weight: 600; line-height: 1.35; margin: 0 0 .5rem; }
section, figure, details { margin: 2.2rem 0 0; }
.lead { color: var(--quiet); margin: 0; }
.verdict {
  margin: 1.2rem 0 0; padding: .7rem 1rem; background: var(--panel); border-left: 4px solid var(--accent);
}
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; align-items: center;
  list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .875rem; color: var(--quiet);
}
.legend li { display: flex; align-items: center; gap: .45rem; color: var(--ink); }
.legend.legend:is(p) { gap: .5rem; }
.swatch { width: 26px; height: 16px; flex: none; }
.ramp { width: 9rem; height: .8rem; border-radius: 3px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 13px system-ui, sans-serif; }
svg text { fill: var(--quiet); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
svg .on-dark { fill: #fff; }
svg .on-light { fill: #101114; }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--quiet); }
svg .nothing { fill: var(--panel); stroke: var(--rule); }
svg .touch { fill: transparent; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .mark { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
svg .bar { stroke: currentColor; stroke-width: 1.5; opacity: .75; }
svg .band { fill: currentColor; opacity: .18; }
.line-0 { color: var(--line-0); } .line-1 { color: var(--line-1); } .line-2 { color: var(--line-2); }
.line-3 { color: var(--line-3); } .line-4 { color: var(--line-4); } .line-5 { color: var(--line-5); }
.line-6 { color: var(--line-6); }
.narrow { display: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th { border-bottom: 1px solid var(--quiet); font-weight: 600; vertical-align: bottom; white-space: normal; }
td { border-bottom: 1px solid var(--rule); }
.number { text-align: right; }
.number + .text { padding-left: 1rem; }
code { white-space: nowrap; font-size: .92em; }
dl { margin: 0; font-size: .9rem; }
dl div { display: grid; grid-template-columns: 11rem 1fr; gap: .8rem; padding: .25rem 0; }
dl div + div { border-top: 1px solid var(--rule); }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
pre {
  overflow: auto; max-height: 30rem; padding: 1rem; background: var(--panel); font-size: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
@media (max-width: 36rem) {
  main { padding-top: 1.2rem; }
  h1 { font-size: 1.35rem; }
  .wide { display: none; }
  .narrow { display: block; }
  dl div { grid-template-columns: 1fr; gap: 0; }
}
@media print {
  :root {
    --paper: #fff; --ink: #000; --quiet: #444; --rule: #ccc; --panel: #f5f5f5; --accent: #444;
    --line-0: #0067a8; --line-1: #c44e00; --line-2: #007d58; --line-3: #a8417f;
    --line-4: #8a6d00; --line-5: #2387b5; --line-6: #444a54;
  }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .wide { display: block; max-width: 17cm; }
  .narrow, details { display: none; }
  figure, tr, dl div { break-inside: avoid; }
  h1, h2, figcaption { break-after: avoid; }
  .scroll { overflow: visible; }
  svg, .ramp { print-color-adjust: exact; }
}
"""
