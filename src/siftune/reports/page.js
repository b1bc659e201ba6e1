const every = () => document.querySelectorAll("details");
const button = document.getElementById("open-all");
button.addEventListener("click", () => {
  const open = [...every()].some((one) => !one.open);
  every().forEach((one) => { one.open = open; });
  button.textContent = open ? "Close all tables" : "Open all tables";
});
// Paper can't be clicked: tables that are closed are opened while printing, and closed again. Examples stay as they are: they are many
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not(.examples)")].filter((one) => !one.open);
  closed.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
