package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// special lists networks that do not belong to one public host, in addition to those that netip recognises: the
// special-purpose registries of RFC 6890, and the ways to embed an IPv4 address in an IPv6 address.
var special = parsePrefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	"5f00::/16",
	"fec0::/10",
)

func parsePrefixes(texts ...string) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		prefixes[i] = netip.MustParsePrefix(text)
	}
	return prefixes
}

// public reports whether an address belongs to a single host on the internet.
func public(address netip.Addr) bool {
	return address.IsGlobalUnicast() && !address.IsPrivate() && !contains(special, address)
}

func contains(networks []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(address) })
}

// errAddress ends a delivery, because a retry cannot change which networks the operator allows.
var errAddress = errors.New("its address is not public, and no allowed network contains it")

// errPlain ends a delivery that would send a result unencrypted over the internet.
var errPlain = errors.New("it is not https, and no allowed network contains its address")

// guard checks the address of every connection, after DNS resolution and before anything is sent.
type guard struct{ allowed []netip.Prefix }

// control returns a net.Dialer's Control, for https URLs if secure is true, otherwise for http URLs.
func (g guard) control(secure bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("%w: %w", errAddress, err)
		}
		ip = ip.WithZone("").Unmap()
		switch {
		case contains(g.allowed, ip):
			return nil
		case !public(ip):
			return errAddress
		case !secure:
			return errPlain
		}
		return nil
	}
}
