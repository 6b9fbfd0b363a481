"""A gate's report as one HTML file, which needs nothing and asks nobody: no script, no font, no other host."""

from html import escape

from pllm.runtime.gate.plot import intervals, over_time
from pllm.runtime.gate.report import GateReport, figure

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --faint: #8a94a3; --rule: #e3e7ec;
  --good: #1a7f4b; --bad: #c22f2f; --unsure: #a86b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ee; --paper: #14181e; --faint: #7f8a99; --rule: #2b323c;
  --good: #4cc38a; --bad: #ff7b72; --unsure: #e3b341; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { border-bottom: 1px solid var(--rule); padding: .3rem .6rem;
  text-align: left; vertical-align: top; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.pass { color: var(--good); } .regression { color: var(--bad); } .void { color: var(--unsure); }
.wide { overflow-x: auto; } svg { width: 100%; min-width: 34rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; }
line { stroke: var(--faint); stroke-width: 1; } line.grid { stroke: var(--rule); }
line.bound { stroke: var(--bad); stroke-dasharray: 3 2; }
line.same, line.fast, line.slow { stroke-width: 3; } line.noise { stroke-width: 3; opacity: .5; }
.same { fill: var(--ink); stroke: var(--ink); } .fast { fill: var(--good); stroke: var(--good); }
.slow { fill: var(--bad); stroke: var(--bad); }
circle.noise { fill: var(--faint); opacity: .7; } circle { stroke: none; }
p.note { color: var(--faint); }
"""


def page(report: GateReport) -> str:
    """The verdict, the checks, the intervals, and each trio's ratios in the order in which they were measured."""
    run = report.run
    plots = ""
    if run is not None and run.comparisons:
        strips = "".join(
            over_time(
                [[100 * ratio for ratio, _ in each.pairs], [100 * noise for _, noise in each.pairs]], each.quantity.name
            )
            for each in run.comparisons
        )
        speed = over_time([[1e3 * min(trio.calibrations) for trio in run.trios]], "calibration kernel, ms")
        plots = (
            "<h2>Change of cost</h2><p class='note'>Thick: new against base, with its interval of 95%. Grey: the base "
            "against itself. Dashed: the bound.</p>"
            f"<div class='wide'>{intervals(run.comparisons)}</div>"
            "<h2>Trio by trio</h2><p class='note'>Percent, in the order measured; grey: the base against itself.</p>"
            f"<div class='wide'>{strips}{speed}</div>"
        )
    rows = "".join(
        f"<tr><td class='{check.verdict.value}'>{check.verdict.value}</td><td>{escape(check.name)}</td>"
        f"<td class='number'>{escape(figure(check.base))}</td><td class='number'>{escape(figure(check.new))}</td>"
        f"<td>{escape(check.unit)}</td><td>{escape(check.reason)}</td></tr>"
        for check in report.checks
    )
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in (*report.notes, report.date))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>pllm gate: {report.verdict.value}</title><style>{_STYLE}</style></head><body>"
        f"<h1 class='{report.verdict.value}'>pllm gate: {report.verdict.value}</h1>"
        f"<p>{escape(report.sentence)}</p>{plots}"
        "<h2>Checks</h2><div class='wide'><table><tr><th></th><th>what</th><th class='number'>base</th>"
        f"<th class='number'>new</th><th></th><th>why</th></tr>{rows}</table></div>{notes}</body></html>\n"
    )
