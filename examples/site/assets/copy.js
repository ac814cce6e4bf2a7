// A button at each block of code that copies it, where the browser lets a page write to the clipboard.
// A classic script; what a page needs more comes with the module app.js.

(() => {
  document.documentElement.dataset.copy = navigator.clipboard ? "on" : "off";
  if (!navigator.clipboard) {
    return;
  }
  for (const block of document.querySelectorAll("pre")) {
    const frame = document.createElement("div");
    frame.className = "copied";
    block.replaceWith(frame);

    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    frame.append(block, button);
  }
})();
