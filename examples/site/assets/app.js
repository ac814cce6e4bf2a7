// Two small things that a page can do without: say which server answered it, and filter the list of pages.

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

/** Shows the search field and hides the cards of pages that do not have every word typed. */
function enableFilter(search, pages) {
  const input = search.querySelector("input");
  const count = search.querySelector("output");
  const texts = new Map(pages.map((page) => [
    page.path, [page.title, page.summary, ...page.words].join(" ").toLowerCase(),
  ]));
  const cards = [...document.querySelectorAll(".cards li")].map((card) => ({
    card, text: texts.get(card.querySelector("a").getAttribute("href")) ?? "",
  }));

  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { card, text } of cards) {
      card.hidden = !words.every((word) => text.includes(word));
      shown += card.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${cards.length} pages` : "";
  };

  input.addEventListener("input", filter);
  search.hidden = false;
}
