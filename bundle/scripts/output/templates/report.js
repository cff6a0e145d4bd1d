"use strict";
// a viewer: its slider chooses a cell of the sprite sheet and the paths that belong to it
for (const viewer of document.querySelectorAll(".viewer")) {
    const { indices, outlines, total } = JSON.parse(viewer.querySelector("script").textContent);
    const slice = viewer.querySelector(".stage .slice");
    const slider = viewer.querySelector("input[type=range]");
    const columns = Number(viewer.style.getPropertyValue("--columns"));

    const show = () => {
        const position = Number(slider.value);
        const text = `slice ${indices[position] + 1} of ${total}`;
        slice.style.setProperty("--column", position % columns);
        slice.style.setProperty("--row", Math.floor(position / columns));
        for (const path of slice.querySelectorAll("path")) {
            path.setAttribute("d", outlines[position][path.dataset.key] ?? "");
        }
        slice.setAttribute("aria-label", `S${text.slice(1)} of ${viewer.dataset.case}, with the outlines of organs`);
        slider.setAttribute("aria-valuetext", text);
        viewer.querySelector("output").textContent = `S${text.slice(1)}`;
    };
    slider.addEventListener("input", show);
    for (const button of viewer.querySelectorAll(".montage button")) {
        button.addEventListener("click", () => {
            slider.value = button.dataset.position;
            show();
        });
    }
    viewer.addEventListener("change", ({ target }) => {
        if (target.dataset.layer) {
            viewer.classList.toggle(`with-${target.dataset.layer}`, target.checked);
        } else if (target.dataset.organ) {
            for (const path of viewer.querySelectorAll(`path[data-key="${target.dataset.organ}"]`)) {
                path.classList.toggle("hidden", !target.checked);
            }
        }
    });
    // what the browser may have kept of an earlier visit
    for (const box of viewer.querySelectorAll("input[type=checkbox]")) {
        box.dispatchEvent(new Event("change", { bubbles: true }));
    }
    show();
}

// a link to a case opens it
const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
        target.open = true;
        target.scrollIntoView();
    }
};
addEventListener("hashchange", open);
open();

// headings sort their table; what is undefined comes last
const key = ({ cells }, column) => cells[column]?.dataset.sort ?? cells[column]?.textContent.trim() ?? "";
const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
for (const table of document.querySelectorAll(".sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => (a === "") - (b === "") || (descending ? compare(b, a) : compare(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
}
