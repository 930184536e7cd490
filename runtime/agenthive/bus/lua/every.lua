-- Schedules: each slot of a schedule is fired once, whoever asks and how often.
--   every:<schedule>   "<slot> <message id>": the last slot that was dealt with, and the last message that was sent
-- Slots only go forward, so one that was dealt with needs no key of its own, and a late process can repeat none.

local SCHEDULE_LIFE = 400 * 86400 * 1000 -- of a schedule that nobody fires any more: longer than a yearly one waits

-- clock: returns the time.
local function clock()
  return now_ms()
end

-- fire: ARGV: schedule, slot (ms), how late it may be fired (ms, -1: any time), "1" if the caller has just started (a
-- schedule that nobody knows yet is then only taken note of), "1" to skip the slot while the last message is pending,
-- and the message as in send: lane, id, document, ttl (ms), options.
-- While the hive moves, slots wait: see CLOSED.
-- Returns { outcome, now }: f fired, d dealt with before, e the slot is still to come, l too late, o skipped because of
-- the last message, n noted.
local function fire(keys, argv)
  local P, now, slot = prefix_of(keys), now_ms(), tonumber(argv[2])
  if slot > now then
    return { 'e', now }
  end
  local key = P .. 'every:' .. argv[1]
  local last, id = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
  if last and slot <= tonumber(last) then
    return { 'd', now }
  end
  if closed(P) then
    return CLOSED
  end
  local outcome = 'f'
  if not last and argv[4] == '1' then
    outcome = 'n'
  elseif tonumber(argv[3]) >= 0 and now - slot > tonumber(argv[3]) then
    outcome = 'l'
  elseif argv[5] == '1' and id and redis.call('HEXISTS', P .. 'ids', id) == 1 then
    outcome = 'o'
  else
    id = argv[7]
    send(keys, { '0', '1', argv[6], id, argv[8], argv[9], argv[10] })
  end
  redis.call('SET', key, argv[2] .. ' ' .. (id or ''), 'PX', as_ms(SCHEDULE_LIFE))
  return { outcome, now }
end

define('clock', clock, { 'no-writes' })
define('fire', fire, {})
