package page

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// screenshots is the folder for pictures of the tested pages; git ignores it.
const screenshots = "../../../artifacts/page"

// tab is a page in a real Chromium, which records everything that must not happen.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string
	problems []string // errors of scripts, and resources that the browser blocked
}

// openBrowser starts Chromium and stops it with the test.
func openBrowser(t *testing.T) context.Context {
	t.Helper()
	// The headless shell is the same engine without a window, and starts much faster. Debian's program of that name is
	// a script that remains the browser's parent and ends before it.
	program, err := exec.LookPath("/usr/lib/chromium/chromium-headless-shell")
	if err != nil {
		program = redistest.Require(t, "chromium")
	}
	// In CI, root in a container.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox,
		chromedp.UserDataDir(profileDir(t)), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(5*time.Minute))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, closeBrowser := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		closeBrowser()
		stop()
	})
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return ctx
}

// watch runs before any script of a page and records what the document's policy blocks.
const watch = `window.violations = []; addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + " " + e.blockedURI), true);`

func newTab(t *testing.T, browser context.Context) *tab {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(browser)
	t.Cleanup(closeTab)
	limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
	t.Cleanup(cancel)
	seen := &tab{t: t, ctx: limited}
	chromedp.ListenTarget(limited, func(event any) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			seen.requests = append(seen.requests, event.Request.URL)
		case *network.EventWebSocketCreated:
			seen.requests = append(seen.requests, event.URL)
		case *cdppage.EventJavascriptDialogOpening:
			seen.problems = append(seen.problems, "a dialog: "+event.Message)
		case *runtime.EventExceptionThrown:
			seen.problems = append(seen.problems, event.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if event.Entry.Level == cdplog.LevelError && event.Entry.Source != cdplog.SourceNetwork {
				seen.problems = append(seen.problems, event.Entry.Text)
			}
		}
	})
	seen.do(network.Enable(), cdplog.Enable(), chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := cdppage.AddScriptToEvaluateOnNewDocument(watch).Do(ctx)
		return err
	}))
	seen.size(1280)
	return seen
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		var text string
		_ = chromedp.Run(b.ctx, chromedp.Evaluate(`document.body.innerText`, &text))
		b.t.Fatalf("in the browser: %v\n%s\n%v", err, text, b.problems)
	}
}

func (b *tab) size(width int64) {
	b.t.Helper()
	b.do(emulation.SetDeviceMetricsOverride(width, 900, 1, width < 500))
}

// scheme is "light" or "dark".
func (b *tab) scheme(name string) {
	b.t.Helper()
	b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}))
}

// eval returns the value of a JavaScript expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	var value T
	b.do(chromedp.Evaluate(expression, &value))
	return value
}

// until waits until an expression is true.
func (b *tab) until(expression string) {
	b.t.Helper()
	b.do(chromedp.Poll(expression, nil, chromedp.WithPollingInterval(20*time.Millisecond),
		chromedp.WithPollingTimeout(40*time.Second)))
}

// text returns the visible text of an element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

// keys presses keys one after the other, as a person without a mouse would.
func (b *tab) keys(keys string, modifiers ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, modifiers...))
}

// tabTo presses Tab until an element has the focus; each element on the way must show the focus.
func (b *tab) tabTo(id string) {
	b.t.Helper()
	for range 60 {
		b.keys("\t")
		if !eval[bool](b,
			`document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== "none" || getComputedStyle(document.activeElement.parentElement).outlineStyle !== "none"`) {
			b.t.Errorf("the focus cannot be seen on %s", eval[string](b, `document.activeElement.outerHTML.slice(0, 200)`))
		}
		if eval[string](b, `document.activeElement.id`) == id {
			return
		}
	}
	b.t.Fatalf("the keyboard does not reach #%s", id)
}

// fits sets the width of the window, and checks that the page is not wider.
func (b *tab) fits(width int64) {
	b.t.Helper()
	b.size(width)
	if got := eval[int64](b, `document.documentElement.scrollWidth`); got > width {
		b.t.Errorf("at %d px the page is %d px wide: %s", width, got, eval[string](b, widest))
	}
}

// shot takes a picture of the whole page in both widths and both colour schemes, and checks the requirements on each.
func (b *tab) shot(name string) {
	b.t.Helper()
	if err := os.MkdirAll(screenshots, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for _, width := range []int64{1280, 360} {
		b.fits(width)
		for _, scheme := range []string{"light", "dark"} {
			b.scheme(scheme)
			for _, poor := range eval[[]string](b, contrast) {
				b.t.Errorf("%s at %d px, %s: %s", name, width, scheme, poor)
			}
			var picture []byte
			b.do(chromedp.FullScreenshot(&picture, 100))
			if err := os.WriteFile(filepath.Join(screenshots, fmt.Sprintf("%s-%d-%s.png", name, width, scheme)), picture, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	b.size(1280)
	b.scheme("light")
	for _, problem := range eval[[]string](b, accessible) {
		b.t.Errorf("%s: %s", name, problem)
	}
}

// copied clicks a copy button and returns the content of the clipboard.
func (b *tab) copied(button string) string {
	b.t.Helper()
	b.do(browser.GrantPermissions([]browser.PermissionType{browser.PermissionTypeClipboardReadWrite,
		browser.PermissionTypeClipboardSanitizedWrite}),
		cdppage.BringToFront(), chromedp.Click(button))
	b.until(fmt.Sprintf(`document.querySelector(%q).textContent === "copied"`, button))
	var text string
	b.do(chromedp.Evaluate(`navigator.clipboard.readText()`, &text,
		func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return text
}

// clean checks that the page requested only origin, and that nothing was blocked or failed.
func (b *tab) clean(origin string) {
	b.t.Helper()
	if violations := eval[[]string](b, `window.violations ?? ["the page was not watched"]`); len(violations) > 0 {
		b.t.Errorf("blocked by the page's policy: %v", violations)
	}
	if eval[bool](b, `"pwned" in window`) {
		b.t.Error("a script of the step ran")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, problem := range b.problems {
		b.t.Errorf("the browser reports: %s", problem)
	}
	for _, request := range b.requests {
		if !strings.HasPrefix(request, origin) {
			b.t.Errorf("the page requested %s", request)
		}
	}
}

const (
	widest = `[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 4).map(e => e.outerHTML.slice(0, 120)).join("\n")`

	// accessible lists obstacles for a screen reader: controls without a name, duplicate ids, roles that refer to
	// nothing, headings out of order.
	accessible = `(() => {
  const problems = [];
  const name = (e) => e.getAttribute("aria-label") || (e.getAttribute("aria-labelledby") && document.getElementById(e.getAttribute("aria-labelledby"))?.innerText)
    || [...(e.labels ?? [])].map((l) => l.textContent).join("") || e.textContent.trim();
  for (const e of document.querySelectorAll("a, button, input, select, textarea, summary, [role=region], section, nav, [tabindex='0']"))
    if (!name(e)) problems.push("has no name: " + e.outerHTML.slice(0, 160));
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) problems.push("id twice: " + id);
  for (const e of document.querySelectorAll("[aria-controls][aria-expanded=true]"))
    if (!document.getElementById(e.getAttribute("aria-controls"))) problems.push("controls nothing: " + e.id);
  for (const e of document.querySelectorAll("button, select, input"))
    // WCAG 2.2, 2.5.8.
    if (e.offsetHeight < 24 || e.offsetWidth < 24) problems.push("smaller than 24 px: " + e.outerHTML.slice(0, 120));
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  let level = 0;
  for (const h of document.querySelectorAll("h1, h2, h3")) {
    const l = Number(h.tagName[1]);
    if (l > level + 1) problems.push("heading skips a level: " + h.textContent);
    level = l;
  }
  if (!document.documentElement.lang || !document.title) problems.push("no language or title");
  return problems;
})()`

	// contrast lists text with a contrast below 4.5:1 (WCAG 2.2, 1.4.3), and fields whose border has less than 3:1
	// (1.4.11).
	contrast = `(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = new Set();
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e);
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || style.visibility === "hidden" || e.getClientRects().length === 0 || e.closest(".sr, .skip, noscript") || e.disabled) continue;
    const behind = [];
    for (let p = e; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const a = light(rgb(behind)), b = light(rgb([...behind, style.color]));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add("contrast " + ratio.toFixed(2) + ": " + e.className + " " + e.textContent.slice(0, 30));
  }
  for (const e of document.querySelectorAll("input, select, .editor, .parameters textarea")) {
    const behind = [];
    for (let p = e.parentElement; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const a = light(rgb(behind)), b = light(rgb([getComputedStyle(e).borderTopColor]));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 3) poor.add("edge " + ratio.toFixed(2) + ": " + e.id + e.className);
  }
  return [...poor].slice(0, 8);
})()`
)

// fileURL returns the URL with which a browser opens a file.
func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// profileDir returns a directory for a browser, whose processes write into it until the last of them has ended.
func profileDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kizen-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sidecartest.WaitFor(t, func() bool { return os.RemoveAll(dir) == nil }) })
	return dir
}
