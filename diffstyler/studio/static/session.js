(...given) => {
  // a tab's own name: it outlives a reload, and no other tab has it
  let session = sessionStorage.getItem("diffstyler-studio");
  if (!session) {
    session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("diffstyler-studio", session);
  }
  return [session, ...given.slice(1)];
}
