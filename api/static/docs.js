"use strict";
// Shows /openapi.json: an entry for each operation, with its parameters, its body and its answers, references resolved.
const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

function resolved(schema, components, depth = 0) {
  if (Array.isArray(schema)) return schema.map((item) => resolved(item, components, depth));
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return depth > 4 ? name : resolved(components[name], components, depth + 1);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolved(value, components, depth)]));
}

function block(parent, title, content) {
  parent.append(make("h4", title), make("pre", JSON.stringify(content, null, 2)));
}

fetch("/openapi.json")
  .then((answer) => answer.json())
  .then(({ paths, components }) => {
    const main = document.getElementById("operations");
    main.replaceChildren();
    for (const [path, methods] of Object.entries(paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        const entry = make("details");
        const summary = make("summary");
        summary.append(make("b", method.toUpperCase()), make("code", path), make("span", ` ${operation.summary}`));
        entry.append(summary);
        for (const parameter of operation.parameters) {
          block(entry, `${parameter.name} (${parameter.in})`, parameter.schema);
        }
        const bodies = operation.requestBody ? operation.requestBody.content : {};
        for (const [media, { schema }] of Object.entries(bodies)) block(entry, `body, ${media}`, resolved(schema, components.schemas));
        for (const [status, { content = {} }] of Object.entries(operation.responses)) {
          for (const [media, { schema }] of Object.entries(content)) {
            block(entry, `${status}, ${media}`, resolved(schema, components.schemas));
          }
        }
        main.append(entry);
      }
    }
  })
  .catch((error) => document.getElementById("operations").replaceChildren(make("p", `The description cannot be read: ${error}`)));
