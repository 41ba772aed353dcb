package ui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
)

//go:embed assets
var embedded embed.FS

// policy returns the content security policy of the page, which allows only sources.
func policy(sources string) string {
	return "default-src 'none'; " + sources +
		"; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

// Handler serves the page below prefix, which begins and ends with a slash.
func Handler(prefix string) http.Handler {
	assets, err := fs.Sub(embedded, "assets")
	if err != nil {
		panic(err) // the folder is in the binary
	}
	files := http.StripPrefix(prefix, http.FileServerFS(assets))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy",
			policy("script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'")+"; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	})
}

// reportModules lists the modules of a report, each after the modules that it imports.
var reportModules = []string{"dom.js", "format.js", "python.js", "waterfall.js", "page.js", "report.js"}

// Report writes a self-contained file that shows record.
func Report(w io.Writer, record Record) error {
	script, err := bundle(reportModules)
	if err != nil {
		return err
	}
	style, err := embedded.ReadFile("assets/style.css")
	if err != nil {
		return err
	}
	data, err := json.Marshal(record) // escapes <, > and &, so that it cannot end its element
	if err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="%s">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>%s</title>
<style>%s</style>
</head>
<body>
<main id="main" tabindex="-1"><noscript>This report is drawn by its own script; allow it to run.</noscript></main>
<script type="application/json" id="record">%s</script>
<script type="module">%s</script>
</body>
</html>
`, policy("script-src "+hash(script)+"; style-src "+hash(style)), html.EscapeString(record.Name), style, data, script)
	_, err = w.Write(out.Bytes())
	return err
}

func hash(content []byte) string {
	sum := sha256.Sum256(content)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

var (
	importLine = regexp.MustCompile(`(?m)^import .*\n`)
	exported   = regexp.MustCompile(`(?m)^export `)
)

// bundle joins modules into one, because a single file cannot import modules. Their imports are on separate lines, and
// no two of them declare the same name.
func bundle(modules []string) ([]byte, error) {
	var out bytes.Buffer
	for _, name := range modules {
		text, err := embedded.ReadFile(path.Join("assets", name))
		if err != nil {
			return nil, err
		}
		out.Write(exported.ReplaceAll(importLine.ReplaceAll(text, nil), nil))
	}
	if strings.Contains(strings.ToLower(out.String()), "</script") {
		return nil, fmt.Errorf("a script of the page would end its element")
	}
	return out.Bytes(), nil
}
