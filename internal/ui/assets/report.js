// The entry point of a report: the record is in the document.
import { drawPage, newView } from "./page.js";

drawPage(document.getElementById("main"), JSON.parse(document.getElementById("record").textContent), newView());
