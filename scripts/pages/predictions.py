"""The page of scripts/show_predictions.py: galleries of the failures, and all pictures to sort and filter."""

import itertools
from html import escape
from urllib.parse import quote

from pages.style import OTHER_COLOUR, class_colours, class_mark, page

from scripts.metrics import MISSED_BELOW

WORST = 12  # masks in the gallery
ERRORS = ("wrong class", "missed malignant", "missed lesion", "false mask", "unsure")
CSS = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: .6rem 0; }
select, th button { font: inherit; color: inherit; background: #f4f4f4; border: 1px solid #767676; border-radius: 4px;
  padding: .25rem .5rem; }
th button { font-weight: bold; cursor: pointer; }
th button::after { content: " \\2195"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
#pictures { width: 100%; }
#pictures img { width: 11rem; }
#pictures td:first-child { width: 11.7rem; overflow-wrap: anywhere; }
#pictures th { white-space: nowrap; }
.maps { display: flex; flex-direction: column; gap: .4rem; }
#pictures .maps img { width: 9rem; }
.p { display: grid; grid-template-columns: minmax(5.2rem, max-content) 4rem 2.4rem; gap: .4rem; align-items: center; }
.p i { display: block; height: .6rem; background: #e6e6e6; }
.p b { display: block; height: 100%; width: var(--w); background: var(--c); }
[hidden] { display: none !important; }
@media (max-width: 56rem) {
  #pictures, #pictures thead, #pictures tbody, #pictures tr, #pictures td { display: block; width: auto; }
  #pictures thead tr { display: flex; flex-wrap: wrap; gap: .3rem; }
  #pictures th { padding: 0; border: 0; }
  #pictures th:not(:has(button)) { display: none; }
  #pictures tbody tr { border: 1px solid #bbb; border-radius: 6px; padding: .6rem; margin: .8rem 0; }
  #pictures td, #pictures td:first-child { border: 0; padding: .15rem 0; width: auto; text-align: left; }
  #pictures td:empty { display: none; }
  #pictures td:not(:first-child)::before { content: attr(data-label) ": "; color: #444; }
  #pictures img { width: 100%; max-width: 26rem; }
  #pictures .maps { flex-flow: row wrap; }
}
"""
SCRIPT = """
const body = document.querySelector("#pictures tbody"), rows = [...body.rows];
const selects = [...document.querySelectorAll(".filters select")], found = document.querySelector(".filters output");
function filter() {
  let shown = 0;
  for (const row of rows) {
    row.hidden = !selects.every(s => !s.value || row.dataset[s.name].split(",").includes(s.value));
    shown += !row.hidden;
  }
  found.textContent = shown + " of " + rows.length + " pictures";
}
selects.forEach(s => s.addEventListener("change", filter));
for (const button of document.querySelectorAll("#pictures th button")) button.addEventListener("click", () => {
  const th = button.parentElement;
  const up = th.getAttribute("aria-sort") !== "ascending";
  document.querySelectorAll("#pictures th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[th.cellIndex].dataset.value;
  rows.sort((a, b) => {
    const x = value(a), y = value(b);
    if (!x || !y) return !x - !y;  // what is not known stays last
    return (up ? 1 : -1) * x.localeCompare(y, "en", {numeric: true});
  });
  body.append(...rows);
});
filter();
"""


def predictions_page(rows, left_out, grad_cam):
    """HTML of the page.

    Args:
        rows: pictures, as show_predictions.py reads and measures them, each with `files`: drawing by title.
        left_out: a line on each picture that could not be drawn.
        grad_cam: mean scores of Grad-CAM, or None.
    """
    masks, classes = any("dice" in r for r in rows), any(r["true_class"] for r in rows)
    lesions = sorted((r for r in rows if r.get("true_area_px", 0) > 0), key=lambda r: (r["dice"], r["filename"]))
    colours = class_colours(rows[0]["probabilities"] if rows else [])
    sections = {}
    if masks:
        sections["Worst masks"] = _gallery(lesions[:WORST], "Least Dice first, of the pictures with a lesion.")
    if classes and "malignant" in colours:
        sections["Missed malignant pictures"] = _gallery(
            [r for r in rows if "missed malignant" in r["errors"]],
            f"Malignant, but called another class, or the lesion not found (Dice under {MISSED_BELOW}).",
        )
    if masks:
        false = [r for r in rows if "false mask" in r["errors"]]
        sections["False masks"] = _gallery(false, "A mask, but no lesion.")
    if grad_cam:
        sections["Grad-CAM"] = _grad_cam(grad_cam)
    sections["All pictures"] = _table(rows, colours)
    if left_out:
        sections["Not shown"] = "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in left_out) + "</ul>"
    lead = f"<p>{len(rows)} pictures. Outlines: predicted in the colour of the predicted class ("
    lead += ", ".join(itertools.starmap(class_mark, colours.items())) + "), true in white. "
    lead += "" if masks else "No true mask is known; give --labels. "
    lead += "" if classes else "No true class is known; give --datalist. "
    if any(r["unsure"] for r in rows):
        unsure = sum(r["unsure"] == "yes" for r in rows)
        lead += f"{unsure} are unsure: their largest probability is below the stored limit."
    else:
        lead += "These weights have no stored limit, so no class is marked unsure; mind the probabilities."
    return page("Predictions", lead + "</p>", sections, CSS, SCRIPT)


def _gallery(rows, explanation):
    if not rows:
        return f"<p>None. ({escape(explanation)})</p>"
    cards = "".join(f"<figure>{_picture(r, 'outlines')}<figcaption>{_caption(r)}</figcaption></figure>" for r in rows)
    return f'<p>{escape(explanation)} {len(rows)} shown.</p><div class="gallery">{cards}</div>'


def _picture(row, title):
    source, alt = quote(row["files"][title]), f"{row['filename']}, {title}: {said(row)}"
    return f'<a href="{source}"><img loading="lazy" src="{source}" alt="{escape(alt)}"></a>'


def said(row):
    """The prediction in words, never without its probability."""
    return f"{row['class']} {row['probabilities'][row['class']]:.2f}" + ", unsure" * (row["unsure"] == "yes")


def _caption(row):
    others = ", ".join(f"{n} {p:.2f}" for n, p in row["probabilities"].items() if n != row["class"])
    text = f"<strong>{escape(row['filename'])}</strong><br>{escape(said(row))} ({escape(others)})"
    if row["true_class"]:
        text += f"<br>true class {escape(row['true_class'])}"
    return text + (f", Dice {row['dice']:.2f}" if "dice" in row else "")


def _grad_cam(scores):
    def line(text, *values):
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        return f'<tr><th scope="row">{text}</th>{cells}</tr>'

    shown = {key: f"{scores[key]:.2f}" for key in ("pointing_game", "energy_inside", "centre", "chance")}
    titles = ("Measure", "Grad-CAM", "centre of the picture", "chance")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        f"<p>Grad-CAM of the predicted class at layer {escape(scores['layer'])}, against the true masks of "
        f"{scores['pictures']} pictures with a lesion. Chance is the lesion's mean share of the picture.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>"
        + line("pointing game: largest value in the lesion", shown["pointing_game"], shown["centre"], shown["chance"])
        + line("share of the energy in the lesion", shown["energy_inside"], "", shown["chance"])
        + "</tbody></table>"
    )


def _table(rows, colours):
    maps = list(dict.fromkeys(title for r in rows for title in r["files"] if title != "outlines"))
    # By heading: the value to sort by, and the HTML
    columns = {
        "Picture": (lambda r: r["filename"], lambda r: _picture(r, "outlines") + escape(r["filename"])),
        "Class": (
            lambda r: r["class"],
            lambda r: _mark(r["class"], colours) + (" <strong>unsure</strong>" if r["unsure"] == "yes" else ""),
        ),
        "Probability": (lambda r: f"{max(r['probabilities'].values()):.6f}", lambda r: _bars(r, colours)),
        "Suspicious": (lambda r: r["suspicious"], lambda r: r["suspicious"]),
        "True class": (lambda r: r["true_class"], lambda r: _mark(r["true_class"], colours) if r["true_class"] else ""),
        "Dice": (_dice, _dice),
        "Mask (%)": (_share, _share),
        "Errors": (lambda r: ", ".join(r["errors"]), lambda r: ", ".join(r["errors"])),
    }
    columns = {name: pair for name, pair in columns.items() if any(pair[0](r) for r in rows)}  # no empty ones
    head = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in columns)
    head += '<th scope="col">Maps</th>' if maps else ""
    lines = ""
    for r in rows:
        cells = "".join(
            f'<td data-label="{name}" data-value="{escape(value(r))}">{html(r)}</td>'
            for name, (value, html) in columns.items()
        )
        if maps:
            pictures = "".join(_picture(r, title) for title in maps if title in r["files"])
            cells += f'<td data-label="Maps"><div class="maps">{pictures}</div></td>'
        errors = ",".join([*r["errors"], *(["unsure"] if r["unsure"] == "yes" else [])]) or "none"
        lines += f'<tr data-class="{escape(r["class"])}" data-true="{escape(r["true_class"])}" data-error="{errors}">'
        lines += f"{cells}</tr>\n"
    filters = "".join(
        f'<label>{title} <select name="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(option)}</option>" for option in options)
        + "</select></label>"
        for name, title, options in (
            ("class", "Class", colours),
            ("true", "True class", colours),
            ("error", "Errors", ("none", *(e for e in ERRORS if "malignant" not in e or "malignant" in colours))),
        )
    )
    return (
        f'<div class="filters">{filters}<output aria-live="polite"></output></div>\n'
        f'<table id="pictures"><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table>'
    )


def _dice(row):
    return f"{row['dice']:.3f}" if "dice" in row else ""


def _share(row):
    return f"{100 * row['predicted_area_px'] / row['picture_px']:.1f}"


def _mark(name, colours):
    return class_mark(name, colours.get(name, OTHER_COLOUR))


def _bars(row, colours):
    return "".join(
        f'<div class="p" style="--c:{colours[name]};--w:{100 * p:.0f}%"><span>{escape(name)}</span>'
        f"<i><b></b></i><span>{p:.2f}</span></div>"
        for name, p in row["probabilities"].items()
    )
