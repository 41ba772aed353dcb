package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/policy"
)

// explainConnection decides on every address of HOST:PORT.
func (c *policyExplainCommand) explainConnection(ctx context.Context, app *app, principal *policy.Principal) error {
	host, service, err := net.SplitHostPort(c.Path)
	if err != nil {
		return exit.Usagef("%q is not HOST:PORT; write it like db.example.com:5432 or [2001:db8::1]:443", c.Path)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return exit.Usagef("%q is not a port from 1 to 65535", service)
	}
	connection := policy.Connection{Host: host, Port: uint16(port), Transport: c.Transport, Step: c.StepName}
	addresses, err := c.addresses(ctx, host)
	if err != nil {
		return err
	}
	if _, literal := netip.ParseAddr(host); literal == nil {
		connection.Host = ""
	}
	answers := []policy.ConnectionExplanation{}
	for _, address := range addresses {
		connection.Address = address.Unmap()
		answers = append(answers, principal.ExplainConnection(connection))
	}
	if c.JSON {
		return terminal.PrintJSON(app.stdout, answers)
	}
	for _, answer := range answers {
		if _, err := fmt.Fprint(app.stdout, answer); err != nil {
			return err
		}
	}
	return nil
}

// addresses returns those of --address, or those of the host.
func (c *policyExplainCommand) addresses(ctx context.Context, host string) (found []netip.Addr, err error) {
	for _, text := range c.Address {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, exit.Usagef("--address %q is not an IP address", text)
		}
		found = append(found, address)
	}
	if found != nil {
		return found, nil
	}
	if literal, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{literal}, nil
	}
	found, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if refused, ok := errors.AsType[*net.DNSError](err); ok {
		return nil, exit.Usagef("the name %q has no address here (%s); name one with --address", host, refused.Err)
	}
	return found, err
}
