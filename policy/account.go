package policy

import (
	"slices"
	"strings"
)

// Names of the account types.
const (
	Employee           = "employee"
	ServiceAutomation  = "service_automation"
	ServiceIntegration = "service_integration"
	ServicePlugin      = "service_plugin"
)

// servicePrefix is the prefix of the names of all service account types.
const servicePrefix = "service_"

// AccountType defines the properties of accounts of one type.
type AccountType struct {
	Name  string // the claim account_type of keys, and the field of accounts
	Title string // human-readable

	SignedKeys bool // has a key for each execution
	StoredKeys bool // has a primary and a secondary key

	Creatable  bool // over the API; otherwise provisioned, see Provisioned
	Archivable bool
	Renamable  bool // name and api_name may be changed

	Provisioned Provision

	BillingSeat  bool // counts as a billing seat
	EmployeeList bool // is in the public employee list
	Typeahead    bool // is found without include_service_accounts
	Timeline     bool // the timeline shows its actions under its name
}

// Service reports whether accounts of this type are service accounts: employees that are not human.
func (t AccountType) Service() bool { return strings.HasPrefix(t.Name, servicePrefix) }

// Provision says how accounts of a type are created.
type Provision string

// The ways in which accounts are created.
const (
	ProvisionedByBusiness Provision = "business" // one for each business, when the platform first sees the business
	ProvisionedByPlugin   Provision = "plugin"   // one for each plugin that is installed
	ProvisionedByHand     Provision = "hand"     // by a person, or over the API
)

// accountTypes defines all account types. docs/extending.md shows how to add one.
var accountTypes = []AccountType{
	{
		Name: Employee, Title: "Employee",
		SignedKeys: true, StoredKeys: true, Provisioned: ProvisionedByHand,
		BillingSeat: true, EmployeeList: true, Typeahead: true, Timeline: true,
	},
	{
		Name: ServiceAutomation, Title: "Agentic Workflow Code Account",
		SignedKeys: true, Provisioned: ProvisionedByBusiness,
		Timeline: true,
	},
	{
		Name: ServiceIntegration, Title: "Integration Account",
		StoredKeys: true, Provisioned: ProvisionedByHand,
		Creatable: true, Archivable: true, Renamable: true,
		Timeline: true,
	},
	{
		Name: ServicePlugin, Title: "Plugin Account",
		SignedKeys: true, Provisioned: ProvisionedByPlugin,
		Timeline: true,
	},
}

// AccountTypes returns every account type.
func AccountTypes() []AccountType { return slices.Clone(accountTypes) }

// FindAccountType returns the account type of that name.
func FindAccountType(name string) (AccountType, bool) {
	i := slices.IndexFunc(accountTypes, func(t AccountType) bool { return t.Name == name })
	if i < 0 {
		return AccountType{}, false
	}
	return accountTypes[i], true
}

func accountTypeNames() string {
	names := make([]string, len(accountTypes))
	for i, t := range accountTypes {
		names[i] = t.Name
	}
	return strings.Join(names, ", ")
}
