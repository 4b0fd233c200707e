for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = button.parentElement.querySelector("code").textContent;
    const said = (word) => {
      button.textContent = word;
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    };
    const byHand = () => {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      said(done ? "copied" : "select it");
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said("copied"), byHand);
    else byHand();
  });
}
