// Two small things that a page can do without: say which server answered it, and filter the list of pages.

import { enableFilter } from "./filter.js";

const here = document.querySelector("[data-served-by]");
if (here && location.host) {
  here.textContent = `This page was answered by ${location.host}.`;
}

const search = document.querySelector("[data-find]");
if (search) {
  try {
    const answer = await fetch(new URL("../data/pages.json", import.meta.url));
    if (answer.ok) {
      enableFilter(search, (await answer.json()).pages);
    }
  } catch {
    // Opened from a file, or the list is not there: all pages stay listed.
  }
}
