package egress

import (
	"bufio"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// names records the names under which a step has found addresses.
type names struct {
	found map[netip.Addr][]string
	hosts map[netip.Addr][]string // of /etc/hosts; nil until it is read
}

const (
	maxAddresses = 4096
	maxNames     = 16 // of one address
)

func newNames() names { return names{found: map[netip.Addr][]string{}} }

// add records that a name has an address. The newest name of an address comes first.
func (n *names) add(name string, address netip.Addr) {
	known := slices.DeleteFunc(n.found[address], func(other string) bool { return other == name })
	if known == nil && len(n.found) >= maxAddresses {
		return
	}
	n.found[address] = append([]string{name}, known[:min(len(known), maxNames-1)]...)
}

// of returns the names that a step may have meant by an address: the names it has resolved, or "" if none, and the
// names in the hosts file, which the step reads itself.
func (n *names) of(address netip.Addr) []string {
	if n.hosts == nil {
		n.hosts = readHosts()
	}
	asked := n.found[address]
	if asked == nil {
		asked = []string{""}
	}
	return slices.Concat(asked, n.hosts[address])
}

// readHosts reads the names in the host's /etc/hosts. A step sees the same file.
func readHosts() map[netip.Addr][]string {
	found := map[netip.Addr][]string{}
	file, err := os.Open("/etc/hosts")
	if err != nil {
		return found
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		if address, err := netip.ParseAddr(fields[0]); err == nil {
			for _, name := range fields[1:] {
				found[address.Unmap()] = append(found[address.Unmap()], strings.ToLower(name))
			}
		}
	}
	return found
}

// rate limits the number of events per second.
type rate struct {
	since time.Time
	count int
}

// take reports whether another event is allowed now.
func (r *rate) take(limit int) bool {
	now := time.Now()
	if now.Sub(r.since) >= time.Second {
		r.since, r.count = now, 0
	}
	r.count++
	return limit <= 0 || r.count <= limit
}

// NameServers returns the servers in the host's /etc/resolv.conf, or the server that programs ask if the file names
// none.
func NameServers() (servers []netip.Addr) {
	file, err := os.Open("/etc/resolv.conf")
	if err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if address, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, address.WithZone("").Unmap())
			}
		}
	}
	if servers == nil {
		servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return servers
}
