// Package attacks is the corpus of everything that is tried against the sidecar, as data with what must happen:
//
//   - what a step runs: [Programs], [Stops], [HostileSteps], [Forgeries], [EchoStep], [BuffersStep];
//   - what a step sends to its proxy: [Messages], [Climbs], [Targets], [Spellings];
//   - what an API answers: [Answers], [Echoes];
//   - what a caller, a page or somebody with a forged key sends: [Requests], [Pages], [Hosts], [Addresses], [Workbench.Tokens];
//   - what reaches Redis: [Strangers], [Nonsense];
//   - what a person is shown: [Harmful], [Markup].
//
// The tests of several packages walk through it.
package attacks
