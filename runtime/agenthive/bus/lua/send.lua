-- send: accept messages into an agent's queue.
-- ARGV: "1" if the batch may have been accepted before (a repetition after a lost connection), bound of the queue,
-- then per message: lane, id, JSON document, ttl (ms), options ("" for none).
-- Returns one character per message: 1 accepted, 2 already known (accepted before), 0 refused: the queue is full.

-- Hold a message back until `due`.
local function hold(P, id, lane, document, meta, due, now)
  local text = meta .. ' a' .. as_ms(now) .. '\n' .. id .. '\n' .. document
  redis.call('HSET', P .. 'held', id, lane .. text)
  redis.call('ZADD', P .. 'delayed', as_ms(due), 'h' .. id)
end

local function send(keys, argv)
  local P = prefix_of(keys)
  local now = now_ms()
  local bound = tonumber(argv[2])
  local ids, count = {}, 0
  for i = 4, #argv, 5 do
    count = count + 1
    ids[count] = argv[i]
  end
  local known = redis.call('HMGET', P .. 'ids', unpack(ids))
  local finals = argv[1] == '1' and finals_of(P, ids)
  local length = redis.call('HLEN', P .. 'held')
  local streams, places = {}, {}
  for _, lane in ipairs(LANES) do
    streams[lane], places[lane] = P .. 'q:' .. lane, lane .. ' '
    length = length + redis.call('XLEN', streams[lane])
  end

  local results, records, changes, seen = {}, {}, 0, {}
  local ready, earliest = false, nil
  local like_ttl, expiry = nil, nil -- most messages of a batch expire alike
  for n = 1, count do
    local id, at = ids[n], 5 * n - 2
    local lane, document, ttl, words = argv[at], argv[at + 2], argv[at + 3], argv[at + 4]
    local options = options_of(words)
    if known[n] or seen[id] or (finals and finals[n]) then
      results[n] = '2'
    elseif length >= bound and not options.f then
      results[n] = '0'
    else
      local due = options.b and tonumber(options.b) or 0
      local entry
      if due > now then
        hold(P, id, lane, document, as_14(due + tonumber(ttl)) .. ' ' .. words, due, now)
        entry = '- ' .. as_ms(now)
        earliest = math.min(earliest or due, due)
      else
        if ttl ~= like_ttl then
          like_ttl, expiry = ttl, as_14(now + tonumber(ttl))
        end
        local meta = words == '' and expiry or expiry .. ' ' .. words
        entry = redis.call('XADD', streams[lane], '*', 'm', meta .. '\n' .. id .. '\n' .. document)
        ready = true
      end
      records[changes + 1], records[changes + 2] = id, places[lane] .. entry
      changes = changes + 2
      seen[id] = true
      length = length + 1
      results[n] = '1'
    end
  end
  if changes > 0 then
    redis.call('HSET', P .. 'ids', unpack(records))
  end
  if ready then
    wake(P)
  end
  if earliest then
    wake_by(P, earliest, now)
  end
  return table.concat(results)
end

define('send', send, {})
