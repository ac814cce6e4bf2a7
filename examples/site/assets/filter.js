/** Shows the search field and hides the cards of pages that do not have every word typed. */
export function enableFilter(search, pages) {
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
