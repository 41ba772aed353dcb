// Package attacks is the corpus of all attacks on the sidecar, as data, with the required result of each:
//
//   - code that a step runs: [Programs], [Stops], [HostileSteps], [Forgeries], [EchoStep], [BuffersStep];
//   - requests that a step sends to its proxy: [Messages], [Climbs], [Targets], [Spellings];
//   - responses of an API: [Answers], [Echoes];
//   - requests of a caller, a web page or a client with a forged key: [Requests], [Heavies], [Pages], [Hosts],
//     [Addresses], [Workbench.Tokens];
//   - input to Redis: [Strangers], [Nonsense];
//   - text that a person reads: [Harmful], [Hidden], [Markup].
//
// The tests of several packages use it.
package attacks
