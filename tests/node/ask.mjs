// OpenAI's Node SDK against a running router; prints what it got as JSON.
// node ask.mjs BASE_URL KEY

import OpenAI, { BadRequestError, NotFoundError } from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
const messages = [{ role: "user", content: "What is 12 + 7?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", strict: true, parameters } }];
const got = {};

got.models = (await client.models.list()).data.map((model) => model.id);

const { data, response, request_id } = await client.chat.completions
  .create({ model: "engine", messages })
  .withResponse();
got.whole = data.choices[0].message.content;
got.usage = data.usage;
got.request_id = request_id;
got.version = response.headers.get("openai-version");

const stream = await client.chat.completions.create({
  model: "engine",
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
got.text = "";
for await (const chunk of stream) {
  got.text += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) got.streamed_usage = chunk.usage;
}

const helper = client.chat.completions.stream({
  model: "engine",
  messages,
  tools,
  tool_choice: { type: "function", function: { name: "get_weather" } },
});
const call = (await helper.finalChatCompletion()).choices[0].message.tool_calls[0].function;
got.call = { name: call.name, arguments: JSON.parse(call.arguments) };

const json_schema = { name: "weather", strict: true, schema: parameters };
const parsed = await client.chat.completions.parse({
  model: "engine",
  messages,
  response_format: { type: "json_schema", json_schema },
});
got.json = JSON.parse(parsed.choices[0].message.content);

const retried = await client.chat.completions.create({ model: "upstream", messages });
got.retried = retried.choices[0].message.content;

got.completion = (await client.completions.create({ model: "upstream", prompt: "a" })).choices[0].text;
const vectors = await client.embeddings.create({ model: "upstream", input: "a", encoding_format: "float" });
got.embedding = vectors.data[0].embedding;

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    const kind = error instanceof BadRequestError ? 400 : error instanceof NotFoundError ? 404 : 0;
    return { kind, param: error.param, code: error.code, type: error.type };
  }
}
got.bad = await failure(client.chat.completions.create({ model: "engine", messages, temperature: 3 }));
got.missing = await failure(client.chat.completions.create({ model: "nobody", messages }));

console.log(JSON.stringify(got));
