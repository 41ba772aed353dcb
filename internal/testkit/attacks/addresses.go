package attacks

// Addresses returns hosts of callback URLs inside the operator's network: the sidecar's own machine, its neighbours,
// or the cloud's metadata service.
func Addresses() []string { return addresses }

var addresses = []string{
	"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "127.1", "2130706433", "0x7f.1", "0.0.0.0",
	"[::]",
	"10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[fec0::1]", "100.64.0.1",
	"[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "224.0.0.1", "255.255.255.255", "192.0.2.1", "[ff02::1]",
}
