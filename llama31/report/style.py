"""The style sheet and the small script of the page. The page is complete without the script: it reads values off."""

from __future__ import annotations

from llama31.report.text import escape

LIGHT = ("#0b62c4", "#c8500a", "#00806a", "#a83279", "#806300", "#2b93cc", "#5b4bc4", "#7a4a2b")
DARK = ("#62aeff", "#ff9a5c", "#3fcfab", "#f58ac8", "#dcbb45", "#93d5ff", "#b1a5ff", "#d3a585")

_THEMES = {
    "light": {
        "paper": "#f7f7f5", "card": "#ffffff", "ink": "#1b1d21", "soft": "#62666d", "line": "#e2e2de",
        "good": "#1a7f4b", "warn": "#9a6200", "bad": "#c22f2f", "lost": "#d6453d", "stall": "#d99a1c",
        "start": "#8d80d6", "down": "#5a5f68", "other": "#b9bcc2",
    },
    "dark": {
        "paper": "#15171a", "card": "#1d2024", "ink": "#e8e9eb", "soft": "#9aa0a8", "line": "#31353b",
        "good": "#4cc38a", "warn": "#e0a83a", "bad": "#ff7b72", "lost": "#ff7b72", "stall": "#e8b24a",
        "start": "#a79cf0", "down": "#c9ccd2", "other": "#5b616a",
    },
}  # fmt: skip


def _variables(theme: str, colours: tuple[str, ...]) -> str:
    palette = {f"k{index}": colour for index, colour in enumerate(colours)}
    return "".join(f"--{name}:{value};" for name, value in (_THEMES[theme] | palette).items())


def _palette() -> str:
    """Classes of the colours that a series may have: k0 to k7, kink and klost."""
    names = {f"k{index}": f"k{index}" for index in range(len(LIGHT))} | {"kink": "ink", "klost": "lost"}
    return "".join(f".{name}{{--c:var(--{variable})}}" for name, variable in names.items())


CSS = f"""
:root{{color-scheme:light dark;{_variables("light", LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables("dark", DARK)}}}}}
{_palette()}
*{{box-sizing:border-box}}
.bar{{height:13px;border-radius:3px;background:var(--k0);min-width:1px}}.bar.gone{{background:var(--lost)}}
.track{{width:100%;min-width:180px;background:var(--line);border-radius:3px}}
body{{margin:0;background:var(--paper);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}}
main{{max-width:1220px;margin:0 auto;padding:28px 20px 60px}}
h1{{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere;letter-spacing:-.01em}}
h2{{font-size:17px;margin:40px 0 12px;letter-spacing:-.005em}}
h3{{font-size:14px;margin:0 0 6px}}
.head h2{{margin:0;font-size:21px;overflow-wrap:anywhere;min-width:0}}a{{color:inherit}}
section.run{{border-top:1px solid var(--line);margin-top:44px;padding-top:30px}}
section.run:first-of-type{{border:0;margin-top:0;padding-top:0}}
.sub,.note,.none,.tile small,dt{{color:var(--soft)}}
.sub{{margin:4px 0 18px;overflow-wrap:anywhere}}
.note{{font-weight:400;margin-left:10px;font-size:12px}}
.none{{margin:22px 0;text-align:center}}
.head{{display:flex;gap:14px;align-items:center;flex-wrap:wrap}}
.pill{{border-radius:99px;padding:3px 12px;font-weight:600;font-size:13px;border:1.5px solid;white-space:nowrap}}
.dot{{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);margin-right:8px}}
.finished,.well,.running{{color:var(--good)}}.stopped{{color:var(--warn)}}.failed,.died{{color:var(--bad)}}
.tiles{{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:12px;margin:16px 0}}
.tile,.card{{background:var(--card);border:1px solid var(--line);border-radius:10px}}
.tile{{padding:12px 14px}}.tile span,.tile small{{display:block}}
.tile span{{font-size:12px;color:var(--soft)}}
.tile b{{display:block;font-size:22px;line-height:1.3;font-weight:600;letter-spacing:-.01em;white-space:nowrap}}
.tile small{{font-size:12px;line-height:1.4;overflow-wrap:anywhere}}
.verdict{{border-left:4px solid;border-radius:6px;background:var(--card);padding:10px 16px;margin:14px 0}}
.verdict.look{{border-color:var(--bad)}}.verdict.fine{{border-color:var(--good)}}
.verdict ul{{margin:2px 0 0;padding-left:18px}}.verdict li{{overflow-wrap:anywhere}}
.grid{{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}}
.card{{margin:0;padding:12px 14px 8px;min-width:0}}.wide{{grid-column:1/-1}}
figcaption{{font-size:14px}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:12px;color:var(--soft);margin:3px 0 2px;min-height:18px}}
.chip{{display:inline-flex;align-items:center;gap:6px;max-width:100%;min-width:0}}
.chip i{{width:14px;height:3px;border-radius:2px;flex:none}}.chip i:not(.swatch){{background:var(--c)}}
.chip i.faint{{opacity:.4}}.chip i.area,.chip i.swatch{{height:10px;width:10px;opacity:.75}}.chip i.swatch{{opacity:1}}
.chip .name{{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;max-width:340px}}
.chip output{{color:var(--ink);font-weight:600;white-space:nowrap}}
svg{{display:block;width:100%;height:auto;overflow:visible}}
svg text{{font-size:11px;fill:var(--soft)}}
svg .grid{{stroke:var(--line);stroke-width:1}}svg .axis{{stroke:var(--soft);stroke-width:1;opacity:.6}}
svg .rule{{stroke:var(--soft);stroke-dasharray:4 4;fill:none}}svg .mark{{fill:var(--bad)}}
svg .line,svg .faint,svg .step{{stroke:var(--c);fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}}
svg .faint{{stroke-width:1;opacity:.35}}
svg .points{{stroke:var(--c);stroke-width:5;stroke-linecap:round;fill:none}}
svg .area{{fill:var(--c);opacity:.75;stroke:none}}
svg .area+.line{{stroke-width:1.8}}svg .area:has(+.line){{opacity:.22}}
svg .cursor{{stroke:var(--ink);stroke-width:1;opacity:.5}}
svg .sign{{font-size:15px;font-weight:700;paint-order:stroke;stroke:var(--card);stroke-width:3px}}
.s-finished,.s-running{{fill:var(--good)!important}}.s-stopped{{fill:var(--warn)!important}}
.s-failed,.s-died{{fill:var(--bad)!important}}
.b-training{{fill:var(--k0);background:var(--k0)}}.b-lost-work{{fill:var(--lost);background:var(--lost)}}
.b-checkpoint-stalls{{fill:var(--stall);background:var(--stall)}}.b-start-up{{fill:var(--start);background:var(--start)}}
.b-down-time{{fill:var(--down);background:var(--down)}}.b-other{{fill:var(--other);background:var(--other)}}
.split{{display:flex;height:26px;border-radius:5px;overflow:hidden;margin:8px 0 6px;gap:1px}}
.split div{{min-width:1px}}
.scroll{{overflow-x:auto;max-height:460px;overflow-y:auto}}
table{{border-collapse:collapse;width:100%;font-size:13px}}
th{{text-align:left;color:var(--soft);font-weight:500;position:sticky;top:0;background:var(--card);white-space:nowrap}}
th,td{{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}}
td{{overflow-wrap:anywhere;min-width:40px}}
tr:last-child td{{border-bottom:0}}
.w{{white-space:nowrap}}.n{{text-align:right;white-space:nowrap;overflow-wrap:normal}}
td.changed{{color:var(--warn);font-weight:600}}
details{{margin-top:12px}}summary{{cursor:pointer;font-weight:600}}
pre{{font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;overflow:auto;max-height:520px;
margin:8px 0;white-space:pre-wrap;overflow-wrap:anywhere}}
footer{{color:var(--soft);font-size:12px;margin-top:36px}}
@media (max-width:1000px){{.tiles{{grid-template-columns:repeat(auto-fill,minmax(165px,1fr))}}}}
@media (max-width:800px){{.grid{{grid-template-columns:minmax(0,1fr)}}main{{padding:18px 12px}}}}
@media print{{.card,.tile{{break-inside:avoid}}.scroll{{max-height:none}}}}
"""

# A vertical line follows the pointer, and the legend says the values there: read off the paths, so they are as exact as
# the picture. Only numbers are put into the page, as text.
SCRIPT = """
const prefixes=[[1e12,"T"],[1e9,"B"],[1e6,"M"],[1e3,"k"]];
function say(v,unit){
  if(unit=="share")return (100*v).toFixed(1)+"%";
  if(unit=="seconds"){if(v<0.1)return (1000*v).toPrecision(3)+" ms";if(v<60)return v.toFixed(1)+" s";
    const m=Math.round(v/60),h=Math.floor(m/60);
    return v<3600?(v/60).toFixed(1)+" min":h+":"+String(m%60).padStart(2,"0")+" h"}
  if(unit=="count"){for(const [s,p] of prefixes)if(Math.abs(v)>=s)return (v/s).toPrecision(3)+p;return v.toPrecision(3)}
  return Math.abs(v)>=1e-3&&Math.abs(v)<1e5?v.toPrecision(4):v.toExponential(2)}
function corners(d){let x=0,y=0,found=[];
  for(const [,c,rest] of d.matchAll(/([MLHVZh])([^MLHVZh]*)/g)){const n=rest.trim().split(/ +/).map(Number);
    if(c=="M"||c=="L"){[x,y]=n;found.push([x,y])}else if(c=="H"){x=n[0];found.push([x,y])}
    else if(c=="V"){y=n[0];found.push([x,y])}}
  return found}
for(const svg of document.querySelectorAll("svg[data-x]")){
  const [x0,x1,a,b,xu]=svg.dataset.x.split(" "),[y0,y1,c,d,yu,log]=svg.dataset.y.split(" ");
  const outs=svg.parentNode.querySelectorAll("output");let paths=null,cursor=null;
  svg.addEventListener("pointermove",e=>{
    paths??=[...svg.querySelectorAll("path[data-i]")].map(p=>[+p.dataset.i,corners(p.getAttribute("d"))]);
    const at=new DOMPoint(e.clientX,e.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    if(at<+a||at>+b)return;
    if(!cursor){cursor=document.createElementNS("http://www.w3.org/2000/svg","path");
      cursor.setAttribute("class","cursor");svg.append(cursor)}
    cursor.setAttribute("d",`M${at} ${d}V${c}`);
    const x=+x0+(at-a)/(b-a)*(x1-x0);svg.setAttribute("data-at",say(x,xu));
    for(const [i,list] of paths){let best=null;
      for(const p of list)if(best===null||Math.abs(p[0]-at)<Math.abs(best[0]-at))best=p;
      if(!best||!outs[i])continue;const t=(best[1]-c)/(d-c);
      const v=log=="1"?Math.exp(Math.log(y0)+t*Math.log(y1/y0)):+y0+t*(y1-y0);
      outs[i].textContent=say(v,yu)+" at "+say(x,xu)}});
  svg.addEventListener("pointerleave",()=>{cursor?.remove();cursor=null;
    for(const o of outs)o.textContent=o.dataset.v});
}
"""


def document(title: str, body: str, footer: str, style: str = "") -> str:
    """A whole page, which needs no network and no other file; `body` and `footer` are HTML, `title` is text."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{style}</style></head><body><main>{body}"
        f"<footer>{footer}</footer></main><script>{SCRIPT}</script></body></html>\n"
    )
