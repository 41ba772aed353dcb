package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
)

// healthCommand is kizen-sidecar health.
type healthCommand struct {
	EnvFile string        `help:"File to which kizen-sidecar proxy wrote KIZEN_API_URL. Default: the variable itself." placeholder:"FILE"`
	Timeout time.Duration `help:"Maximum time for the proxy's response." default:"2s" env:"KIZEN_HEALTH_TIMEOUT" least:"1ms" placeholder:"DURATION"`
}

// Help is the long text of kizen-sidecar health --help.
func (healthCommand) Help() string {
	return `Sends a running kizen-sidecar proxy a request that it answers itself, without its capability: nothing reaches the API and nothing is authenticated. Exit code 0 means that the proxy is serving.

Examples:
  kizen-sidecar health --env-file /run/kizen/env`
}

// Run is called by kong.
func (c *healthCommand) Run(ctx context.Context, app *app) error {
	base, err := c.base()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+base.Host+"/", nil)
	if err != nil {
		return fmt.Errorf("ask the proxy at %s: %w", base.Host, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("the proxy at %s does not answer; is it running?", base.Host)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		return fmt.Errorf("the server at %s is not the proxy: status %d", base.Host, response.StatusCode)
	}
	fmt.Fprintln(app.stdout, "serving at", base.Host)
	return nil
}

func (c *healthCommand) base() (*url.URL, error) {
	text := os.Getenv("KIZEN_API_URL")
	if c.EnvFile != "" {
		data, err := os.ReadFile(c.EnvFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read --env-file %q: %w; is the proxy running?", c.EnvFile, wholefile.Cause(err))
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
		text = strings.TrimPrefix(first, "KIZEN_API_URL=")
	}
	base, err := url.Parse(text)
	if err != nil || base.Host == "" {
		return nil, exit.Usagef("the proxy's address is unknown; use --env-file, or set KIZEN_API_URL")
	}
	return base, nil
}
