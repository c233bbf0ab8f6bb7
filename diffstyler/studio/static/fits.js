// Buttons in what Python drew: data-cancel names the job.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-cancel]");
  if (button) trigger("click", { id: button.dataset.cancel });
});
